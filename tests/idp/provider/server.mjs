// The second identity provider of the tests: oidc-provider over TLS, with refresh
// tokens that rotate, an `iss` in every redirect (RFC 9207), revocation, and the
// device flow. Its settings come as JSON in argv[2]; it prints its issuer when it listens.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { generateKeyPairSync } from 'node:crypto';
import { Provider } from 'oidc-provider';

const settings = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const { publicKey: _, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });

const provider = new Provider(settings.issuer, {
  clients: [
    {
      client_id: 'towline',
      token_endpoint_auth_method: 'none',
      application_type: 'native',
      redirect_uris: ['http://127.0.0.1/callback'],
      grant_types: [
        'authorization_code',
        'refresh_token',
        'urn:ietf:params:oauth:grant-type:device_code',
      ],
      response_types: ['code'],
    },
  ],
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid: 'first' }] },
  cookies: { keys: ['for tests only'] },
  // Claims go into the ID token itself, as most providers do it.
  conformIdTokenClaims: false,
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name', 'preferred_username'], groups: ['groups'] },
  scopes: ['openid', 'offline_access', 'email', 'profile', 'groups'],
  findAccount: (_context, id) => {
    const user = settings.users[id];
    return user && { accountId: id, claims: () => ({ sub: id, ...user }) };
  },
  features: {
    deviceFlow: { enabled: true },
    revocation: { enabled: true },
    // Its own login page takes any password: it is the other side that is under test.
    devInteractions: { enabled: true },
  },
  pkce: { required: () => true },
  issueRefreshToken: async (_context, client) => client.grantTypeAllowed('refresh_token'),
  rotateRefreshToken: true,
  ttl: { IdToken: settings.idTokenSeconds, AccessToken: settings.idTokenSeconds, RefreshToken: 3600, Session: 3600, Grant: 3600, Interaction: 600, DeviceCode: 600, AuthorizationCode: 60 },
});

const server = createServer(
  { cert: readFileSync(settings.certificate), key: readFileSync(settings.key) },
  provider.callback(),
);
server.listen(settings.port, '0.0.0.0', () => console.log(`listening: ${settings.issuer}`));

// Gives tokens in the shape of CI systems' own: `/token/NAME?audience=A` as JSON, the way GitHub answers a job that
// shows its bearer, and `/raw/NAME?audience=A` as GitLab puts it into a variable. Its keys are at `/jwks`. Its settings
// come as JSON in argv[2]; it prints a line when it listens.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { exportJWK, generateKeyPair, SignJWT } from 'jose';

const settings = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const { publicKey, privateKey } = await generateKeyPair('RS256');
const jwks = { keys: [{ ...(await exportJWK(publicKey)), kid: 'ci', alg: 'RS256', use: 'sig' }] };

const answer = async (request, response) => {
  const url = new URL(request.url, 'https://localhost');
  const [, kind, name] = url.pathname.split('/');
  if (kind === 'jwks') return response.end(JSON.stringify(jwks));
  const claims = settings.tokens[name];
  const isJob = kind === 'raw' || request.headers.authorization === `Bearer ${settings.bearer}`;
  if (!claims || !isJob) return response.writeHead(claims ? 401 : 404).end();
  const token = await new SignJWT(claims)
    .setProtectedHeader({ alg: 'RS256', kid: 'ci', typ: 'JWT' })
    .setAudience(url.searchParams.get('audience'))
    .setIssuedAt()
    .setNotBefore('0s')
    .setExpirationTime('5m')
    .setJti(crypto.randomUUID())
    .sign(privateKey);
  response.end(kind === 'raw' ? token : JSON.stringify({ count: token.length, value: token }));
};

createServer(
  { cert: readFileSync(settings.certificate), key: readFileSync(settings.key) },
  (request, response) => answer(request, response).catch((error) => response.writeHead(500).end(String(error))),
).listen(settings.port, '0.0.0.0', () => console.log('listening'));

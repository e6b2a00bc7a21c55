//! Signing in with a workload's own token.

use super::super::{
    Error,
    context::{Known, refused},
};
use crate::{
    cli::Login,
    oauth::{OAuth, Subject, Wanted},
    progress,
    service_account::ActAs,
    sign_in::{RenewError, SignIn},
    tokens::Issued,
    workload::{Kind, Source, Workload},
};

/// The credential configuration that was given.
pub(super) fn configured(args: &Login) -> Result<Option<Workload>, Error> {
    Ok(args.cred_file.as_deref().map(Workload::read).transpose()?)
}

/// The workload that was named one way or the other.
pub(super) fn named(
    args: &Login,
    configured: Option<Workload>,
    known: &Known,
) -> Result<Option<Workload>, Error> {
    if let Some(workload) = configured {
        if workload.gateway.parse().ok().as_ref() != Some(&known.url) {
            return Err(refused(format!(
                "the credential configuration is for {}, not for {}",
                workload.gateway, known.url
            )));
        }
        return Ok(Some(workload));
    }
    let (Some(provider), Some(file)) = (&args.workload_identity_provider, &args.token_file) else {
        return Ok(None);
    };
    let account = args.service_account.as_deref().map(str::parse::<ActAs>);
    Ok(Some(Workload {
        kind: Kind::ExternalAccount,
        gateway: known.url.to_string(),
        certificate_authority_data: None,
        audience: audience(&known.url.authority(), provider)?,
        credential_source: Source::File(std::path::absolute(file).unwrap_or_else(|_| file.clone())),
        service_account: account.transpose()?.map(|account| account.to_string()),
    }))
}

/// Exchanges the token that is there now, so that what is wrong is told at once.
pub(super) async fn checked(oauth: &OAuth, workload: Workload) -> Result<(SignIn, Issued), Error> {
    let token = workload.token().await?;
    let resource = workload.gateway.trim_end_matches('/').to_owned();
    let wanted = Wanted {
        resource: Some(&resource),
        service_account: workload.service_account.as_deref(),
    };
    let subject = Subject::Workload {
        token: &token,
        audience: &workload.audience,
    };
    let exchanged = progress::during("Signing in", oauth.exchange(subject, wanted)).await;
    let issued = exchanged
        .map_err(|error| crate::api::CallError::Renew(Box::new(RenewError::Gateway(error))))?;
    Ok((SignIn::Workload(Box::new(workload)), issued))
}

/// What a token exchange calls a provider: its resource name, behind the gateway's host.
pub(in crate::commands) fn audience(host: &str, provider: &str) -> Result<String, Error> {
    let own = format!("//{host}/");
    let name = provider.strip_prefix(&own).unwrap_or(provider);
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        [
            "projects",
            project,
            "locations",
            "global",
            "workloadIdentityPools",
            pool,
            "providers",
            provider,
        ] if [project, pool, provider]
            .iter()
            .all(|part| !part.is_empty()) =>
        {
            Ok(format!("{own}{name}"))
        }
        _ => Err(refused(format!(
            "{provider:?} is no provider; give \
             projects/PROJECT/locations/global/workloadIdentityPools/POOL/providers/NAME, as \
             `towline iam workload-identity-pools providers list` prints it"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_named_with_or_without_its_host() {
        let name = "projects/p/locations/global/workloadIdentityPools/ci/providers/x";
        let whole = format!("//gw:8443/{name}");
        assert_eq!(audience("gw:8443", name).unwrap(), whole);
        assert_eq!(audience("gw:8443", &whole).unwrap(), whole);
        for bad in [
            "x",
            "projects/p/locations/global/workloadIdentityPools/ci",
            &whole,
        ] {
            let error = audience("gw", bad).unwrap_err().to_string();
            assert!(error.contains("providers list"), "{error}");
        }
    }
}

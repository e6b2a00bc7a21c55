//! `towline memberships generate-gateway-rbac`: the RBAC of a cluster, written, applied or revoked.
//!
//! It goes to the cluster with the caller's own kubeconfig, through kubectl: whoever may change RBAC there decides who
//! gets through the gateway, and the gateway doesn't.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use towline_proto::api::{GetMembershipRequest, Membership};

use super::{
    Error,
    context::{Context, call, refused},
};
use crate::{
    atomic,
    cli::{GatewayRbac, MembershipName},
    manifest,
    output::remark,
    rbac::{Policy, VERBS},
};

mod names;

pub(super) async fn run(context: &Context, args: GatewayRbac) -> Result<(), Error> {
    let names = names::all(&args).map_err(|e| refused(e.to_string()))?;
    let role = names::role(&args).map_err(|e| refused(e.to_string()))?;
    let verbs: Vec<String> = if args.verbs.is_empty() {
        VERBS.map(str::to_owned).to_vec()
    } else {
        args.verbs.clone()
    };
    let membership = match &args.membership.name {
        MembershipName::Short(id) => id.to_string(),
        MembershipName::Whole(name) => name.to_string(),
    };
    let policy = Policy {
        membership: &membership,
        agent_namespace: args.agent_namespace.as_str(),
        names: &names,
        role: role.as_ref(),
        constrained: args.constrained.then_some(verbs.as_slice()),
    };
    if args.anyone && !args.revoke {
        remark(manifest::ANYONE);
    }
    if args.revoke {
        return revoke(context, &args, &policy).await;
    }
    let text = manifest::yaml(&policy.objects()).map_err(|e| refused(e.to_string()))?;
    if args.apply {
        let kubectl = Kubectl::of(context, &args).await?;
        let mut words = vec![
            "apply",
            "--server-side",
            "--field-manager",
            "towline",
            "-f",
            "-",
        ];
        if args.dry_run {
            words.push("--dry-run=server");
        }
        context.output.text(&kubectl.run(&words, Some(&text))?)?;
        return Ok(());
    }
    match args.rbac_output_file.as_deref() {
        None => context.output.text(&text)?,
        Some(file) if file == Path::new("-") => context.output.text(&text)?,
        Some(file) => {
            atomic::write(file, text.as_bytes())?;
            let file = file.display();
            remark(&format!(
                "Wrote {file}. Next, on the cluster: kubectl apply --server-side -f {file}"
            ));
        }
    }
    Ok(())
}

async fn revoke(context: &Context, args: &GatewayRbac, policy: &Policy<'_>) -> Result<(), Error> {
    let kubectl = Kubectl::of(context, args).await?;
    let dry_run: &[&str] = if args.dry_run {
        &["--dry-run=server"]
    } else {
        &[]
    };
    let membership = policy.membership;
    if !args.yes && !args.dry_run {
        context.confirm(
            &format!(
                "Take {} name(s) out of the RBAC of {membership}?",
                policy.names.len()
            ),
            &format!("revoking at {membership} needs a yes; add --yes"),
        )?;
    }
    let mut said = String::new();
    for name in policy.names {
        if let Some(role) = policy.role {
            let Some((kind, namespace, object)) = policy.binding(name, role) else {
                continue;
            };
            let namespace = namespace.map(|namespace| format!("--namespace={namespace}"));
            let mut words = vec!["delete", kind, &object, "--ignore-not-found"];
            words.extend(namespace.as_deref());
            words.extend(dry_run);
            said += &kubectl.run(&words, None)?;
            continue;
        }
        let selector = policy.selector(name);
        for (kinds, everywhere) in [
            ("rolebindings,roles", &["--all-namespaces"][..]),
            ("clusterrolebindings,clusterroles", &[]),
        ] {
            let mut words = vec!["delete", kinds, "--selector", &selector];
            words.extend(everywhere);
            words.extend(dry_run);
            said += &kubectl.run(&words, None)?;
        }
    }
    context.output.text(&said)?;
    if policy.role.is_none() && !args.dry_run {
        remark(
            "Whom other objects name, such as the ClusterRole gateway-impersonate of the agent's own manifest, the \
             agent may still impersonate.",
        );
    }
    Ok(())
}

/// kubectl at the membership's own cluster.
struct Kubectl {
    flags: Vec<String>,
}

impl Kubectl {
    async fn of(context: &Context, args: &GatewayRbac) -> Result<Self, Error> {
        let mut flags = Vec::new();
        if let Some(context) = &args.context {
            flags.push(format!("--context={context}"));
        }
        if let Some(file) = &args.kubeconfig {
            flags.push(format!("--kubeconfig={}", file.display()));
        }
        let kubectl = Self { flags };
        let api = context.api()?;
        let location = args.membership.location.location.as_ref();
        let name = context
            .resolve(&api, &args.membership.name, location)
            .await?;
        let request = GetMembershipRequest {
            project: name.project.to_string(),
            location: name.location.to_string(),
            name: name.id.to_string(),
        };
        let found: Membership = call(&api, "Memberships/Get", &request).await?;
        let words = [
            "get",
            "namespace",
            "kube-system",
            "-o",
            "jsonpath={.metadata.uid}",
        ];
        let here = kubectl.run(&words, None)?;
        if found.external_id.is_empty() {
            remark(&format!(
                "No agent of {name} has told which cluster it is in, so this may be another one."
            ));
        } else if found.external_id != here.trim() {
            return Err(refused(format!(
                "kubectl{} leads to another cluster (kube-system has UID {}) than {name} (UID {}); choose with --context \
                 or --kubeconfig",
                kubectl
                    .flags
                    .iter()
                    .fold(String::new(), |all, flag| format!("{all} {flag}")),
                here.trim(),
                found.external_id
            )));
        }
        Ok(kubectl)
    }

    /// Runs it; its own words on standard error are the caller's to read.
    fn run(&self, words: &[&str], input: Option<&str>) -> Result<String, Error> {
        let failed = |error: std::io::Error| {
            refused(format!(
                "kubectl can't be run: {error}; install it, or use --rbac-output-file"
            ))
        };
        let mut child = Command::new("kubectl")
            .args(words)
            .args(&self.flags)
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // A kubectl that doesn't read says why by itself.
            drop(stdin.write_all(input.as_bytes()));
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(refused(format!(
                "kubectl {} failed ({})",
                words.first().unwrap_or(&""),
                output.status
            )))
        }
    }
}

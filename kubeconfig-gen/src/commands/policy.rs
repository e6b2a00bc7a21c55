//! Policies: reading, replacing, and adding to or taking from one, of whatever has one.

use std::path::Path;

use towline_proto::api::{
    Binding, Condition, GetPolicyRequest, Policy, SetPolicyRequest, from_json,
};

use super::{
    Error,
    context::{Context, call, refused},
};
use crate::{
    api::{Api, CallError},
    bounded, cli,
    table::Table,
};

/// As often as somebody else may be faster.
const TRIES: usize = 5;

/// Prints a resource's policy.
pub(super) async fn get(context: &Context, resource: &str) -> Result<(), Error> {
    let policy = read(&context.api()?, resource).await?;
    show(context, &policy)
}

/// Replaces a resource's policy by a file's; `noun` is the command's, for what to type next.
pub(super) async fn set(
    context: &Context,
    resource: &str,
    noun: &str,
    file: &Path,
) -> Result<(), Error> {
    let text =
        bounded::read_to_string(file).map_err(|e| Error::Read(file.display().to_string(), e))?;
    let policy = parse(&text).map_err(|e| refused(format!("{}: {e}", file.display())))?;
    if policy.etag.is_empty() {
        let name = resource.rsplit('/').next().unwrap_or(resource);
        return Err(refused(format!(
            "{} has no etag, so a change made meanwhile would be lost; \
             begin with: towline {noun} get-iam-policy {name} -o yaml > FILE",
            file.display()
        )));
    }
    let policy = write(&context.api()?, resource, policy).await?;
    show(context, &policy)
}

/// Gives somebody a role.
pub(super) async fn add(
    context: &Context,
    resource: &str,
    binding: &cli::BindingArgs,
) -> Result<(), Error> {
    change(context, resource, |policy| Ok(add_to(policy, binding))).await
}

/// Takes a role from somebody; with `all` whatever the condition is.
pub(super) async fn remove(
    context: &Context,
    resource: &str,
    binding: &cli::BindingArgs,
    all: bool,
) -> Result<(), Error> {
    change(context, resource, |policy| {
        let cli::BindingArgs { member, role, .. } = binding;
        if remove_from(policy, binding, all) {
            return Ok(true);
        }
        let mut under = policy
            .bindings
            .iter()
            .filter(|other| other.role == *role && other.members.contains(member))
            .map(|other| {
                other.condition.as_ref().map_or_else(
                    || "without a condition".to_owned(),
                    |condition| format!("under the condition {:?}", condition.title),
                )
            });
        Err(refused(match under.next() {
            None => format!("{member} does not have {role} on {resource}; nothing was changed"),
            Some(first) => {
                let rest: Vec<String> = std::iter::once(first).chain(under).collect();
                format!(
                    "{member} has {role} on {resource} {}; nothing was changed; \
                     give --condition as it is there, or --all",
                    rest.join(" and ")
                )
            }
        }))
    })
    .await
}

/// Reads, changes and writes a policy; again when somebody else was faster.
async fn change(
    context: &Context,
    resource: &str,
    edit: impl Fn(&mut Policy) -> Result<bool, Error>,
) -> Result<(), Error> {
    let api = context.api()?;
    let mut tries = TRIES;
    loop {
        let mut policy = read(&api, resource).await?;
        if !edit(&mut policy)? {
            return show(context, &policy);
        }
        match write(&api, resource, policy).await {
            Ok(policy) => return show(context, &policy),
            Err(Error::Call(CallError::Refused(refusal)))
                if refusal.code == "aborted" && tries > 0 =>
            {
                tries -= 1;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn read(api: &Api, resource: &str) -> Result<Policy, Error> {
    let request = GetPolicyRequest {
        resource: resource.to_owned(),
    };
    call(api, "Iam/GetPolicy", &request).await
}

async fn write(api: &Api, resource: &str, policy: Policy) -> Result<Policy, Error> {
    let request = SetPolicyRequest {
        resource: resource.to_owned(),
        policy: Some(policy),
    };
    call(api, "Iam/SetPolicy", &request).await
}

/// Whether it made a difference.
fn add_to(policy: &mut Policy, args: &cli::BindingArgs) -> bool {
    let same = policy.bindings.iter_mut().find(|binding| {
        binding.role == args.role && is_same(binding.condition.as_ref(), args.condition.as_ref())
    });
    match same {
        Some(binding) if binding.members.contains(&args.member) => false,
        Some(binding) => {
            binding.members.push(args.member.clone());
            true
        }
        None => {
            policy.bindings.push(Binding {
                role: args.role.clone(),
                members: vec![args.member.clone()],
                condition: args.condition.clone().map(|condition| Condition {
                    title: condition.title,
                    description: condition.description,
                    expression: condition.expression,
                }),
            });
            true
        }
    }
}

/// Whether it made a difference.
fn remove_from(policy: &mut Policy, args: &cli::BindingArgs, all: bool) -> bool {
    let mut removed = false;
    for binding in policy.bindings.iter_mut().filter(|binding| {
        binding.role == args.role
            && (all || is_same(binding.condition.as_ref(), args.condition.as_ref()))
    }) {
        let before = binding.members.len();
        binding.members.retain(|known| *known != args.member);
        removed |= binding.members.len() < before;
    }
    policy
        .bindings
        .retain(|binding| !binding.members.is_empty());
    removed
}

/// Titles and descriptions are for people; the expression is what counts.
fn is_same(stored: Option<&Condition>, typed: Option<&cli::Condition>) -> bool {
    match (stored, typed) {
        (None, None) => true,
        (Some(stored), Some(typed)) => {
            stored.expression == typed.expression && stored.title == typed.title
        }
        _ => false,
    }
}

/// JSON is YAML too.
fn parse(text: &str) -> Result<Policy, String> {
    let tree: serde_json::Value =
        serde_saphyr::from_str(text).map_err(|e| e.without_snippet().to_string())?;
    from_json(tree.to_string().as_bytes()).map_err(|e| e.to_string())
}

fn show(context: &Context, policy: &Policy) -> Result<(), Error> {
    let text = || {
        let conditions = policy.bindings.iter().any(|b| b.condition.is_some());
        let mut titles = vec!["ROLE", "MEMBER"];
        if conditions {
            titles.push("CONDITION");
        }
        let mut table = Table::new(titles);
        for binding in &policy.bindings {
            for member in &binding.members {
                let mut cells = vec![binding.role.clone(), member.clone()];
                if conditions {
                    cells.push(binding.condition.as_ref().map_or_else(String::new, |when| {
                        format!("{}: {}", when.title, when.expression)
                    }));
                }
                table.row(cells);
            }
        }
        table.render()
    };
    Ok(context.output.one(policy, &policy.etag, text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(member: &str, expression: Option<&str>) -> cli::BindingArgs {
        cli::BindingArgs {
            member: member.into(),
            role: "owner".into(),
            condition: expression.map(|expression| cli::Condition {
                title: "t".into(),
                expression: expression.into(),
                ..cli::Condition::default()
            }),
        }
    }

    #[test]
    fn bindings_come_and_go() {
        let mut policy = Policy {
            etag: "e".into(),
            ..Policy::default()
        };
        assert!(add_to(&mut policy, &args("user:a", None)));
        assert!(add_to(&mut policy, &args("user:b", None)));
        assert!(!add_to(&mut policy, &args("user:b", None)));
        assert_eq!(policy.bindings.len(), 1);
        assert!(!remove_from(&mut policy, &args("user:c", None), false));
        assert!(remove_from(&mut policy, &args("user:a", None), false));
        assert!(remove_from(&mut policy, &args("user:b", None), false));
        assert!(policy.bindings.is_empty());
    }

    #[test]
    fn a_condition_makes_another_binding() {
        let mut policy = Policy::default();
        assert!(add_to(&mut policy, &args("user:a", None)));
        assert!(add_to(&mut policy, &args("user:a", Some("true"))));
        assert!(!add_to(&mut policy, &args("user:a", Some("true"))));
        assert!(add_to(&mut policy, &args("user:a", Some("false"))));
        assert_eq!(policy.bindings.len(), 3);
        assert!(remove_from(
            &mut policy,
            &args("user:a", Some("true")),
            false
        ));
        assert_eq!(policy.bindings.len(), 2);
        assert!(remove_from(&mut policy, &args("user:a", None), true));
        assert!(policy.bindings.is_empty());
    }

    #[test]
    fn a_policy_is_read_as_it_is_printed() {
        let text = "bindings:\n- role: owner\n  members:\n  - user:a\n  condition:\n    title: t\n    expression: 'true'\netag: '1'\n";
        let policy = parse(text).unwrap();
        assert_eq!(
            (policy.bindings[0].members[0].as_str(), policy.etag.as_str()),
            ("user:a", "1")
        );
        assert_eq!(
            policy.bindings[0].condition.as_ref().unwrap().expression,
            "true"
        );
        assert_eq!(parse(r#"{"etag": "1"}"#).unwrap().etag, "1");
        assert!(parse("bindigns: []").unwrap_err().contains("bindigns"));
    }
}

//! `towline iam explain`: what IAM and the cluster say, in sentences.

use towline_proto::api::{
    ConsideredBinding, ExplainRequest, ExplainResponse, cluster_answer::State,
};

use super::super::{
    Error,
    context::{Context, call},
};
use crate::cli::Explain;

pub(super) async fn run(context: &Context, question: Explain) -> Result<(), Error> {
    let api = context.api()?;
    let membership = context.resolve(&api, &question.membership, None).await?;
    let request = ExplainRequest {
        member: question.member,
        groups: question.groups,
        membership: membership.to_string(),
        verb: question.verb,
        resource: question.resource,
        subresource: question.subresource.unwrap_or_default(),
        namespace: question.namespace.unwrap_or_default(),
        name: question.name.unwrap_or_default(),
    };
    let answer: ExplainResponse = call(&api, "Iam/Explain", &request).await?;
    let text = || told(&request, &answer);
    Ok(context.output.one(&answer, &request.member, text)?)
}

fn told(request: &ExplainRequest, answer: &ExplainResponse) -> String {
    let ExplainRequest {
        member, membership, ..
    } = request;
    let mut text = String::new();
    let verdict = if answer.allowed { "yes" } else { "no" };
    text += &line(format!(
        "IAM:   {verdict}; {} needs {} on {membership}",
        what(request),
        answer.permission
    ));
    for binding in &answer.bindings {
        text += &line(format!("       {}", sentence(member, binding)));
    }
    if answer.bindings.is_empty() {
        text += &line(format!(
            "       no binding gives {member} a role with it; roles with it: {}",
            answer.roles.join(", ")
        ));
    }
    let (state, reason) = answer.cluster.as_ref().map_or_else(
        || (State::Unspecified, String::new()),
        |cluster| (cluster.state(), cluster.reason.clone()),
    );
    let verdict = match state {
        State::Allowed => "yes",
        State::Denied => "no",
        State::NotAsked | State::Unspecified => "not known",
    };
    let reason = match (reason.is_empty(), state) {
        (false, _) => reason,
        (true, State::Denied) => "no rule there gives it".to_owned(),
        (true, _) => String::new(),
    };
    let reason = if reason.is_empty() {
        reason
    } else {
        format!("; {reason}")
    };
    text += &line(format!("RBAC:  {verdict}{reason}"));
    text += &line(format!(
        "       asked as user {:?}{}",
        answer.username,
        groups(answer)
    ));
    text
}

fn line(text: String) -> String {
    text + "\n"
}

/// `create pods/exec in web`.
fn what(request: &ExplainRequest) -> String {
    let mut text = format!("{} {}", request.verb, request.resource);
    for (before, part) in [
        ("/", &request.subresource),
        (" ", &request.name),
        (" in ", &request.namespace),
    ] {
        if !part.is_empty() {
            text += before;
            text += part;
        }
    }
    text
}

fn sentence(member: &str, binding: &ConsideredBinding) -> String {
    let whom = if binding.member == member {
        member.to_owned()
    } else {
        format!("{member} (as {})", binding.member)
    };
    let base = format!("{whom} has {} on {}", binding.role, binding.resource);
    match (&binding.condition, binding.value.as_str()) {
        (None, _) => base,
        (Some(condition), value) => {
            let holds = match value {
                "true" => "which holds".to_owned(),
                "false" => "which does not hold".to_owned(),
                error => format!("which gives nothing: {error}"),
            };
            format!(
                "{base} under the condition {:?} ({}), {holds}",
                condition.title, condition.expression
            )
        }
    }
}

fn groups(answer: &ExplainResponse) -> String {
    if answer.groups.is_empty() {
        String::new()
    } else {
        format!(" in groups {}", answer.groups.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use towline_proto::api::{ClusterAnswer, Condition};

    use super::*;

    #[test]
    fn both_layers_say_what_they_say_and_why() {
        let request = ExplainRequest {
            member: "user:alice".into(),
            membership: "projects/p/locations/global/memberships/prod".into(),
            verb: "create".into(),
            resource: "pods".into(),
            subresource: "exec".into(),
            namespace: "web".into(),
            ..ExplainRequest::default()
        };
        let binding = ConsideredBinding {
            resource: "projects/p".into(),
            role: "gatewayAdmin".into(),
            member: "group:ops".into(),
            condition: Some(Condition {
                title: "dev".into(),
                expression: "resource.labels.env == 'dev'".into(),
                ..Condition::default()
            }),
            value: "false".into(),
        };
        let answer = ExplainResponse {
            permission: "gateway.stream".into(),
            bindings: vec![binding],
            username: "alice".into(),
            groups: vec!["ops".into()],
            cluster: Some(ClusterAnswer {
                state: State::Denied.into(),
                reason: String::new(),
            }),
            ..ExplainResponse::default()
        };
        assert_eq!(
            told(&request, &answer),
            "IAM:   no; create pods/exec in web needs gateway.stream on projects/p/locations/global/memberships/prod\n       \
             user:alice (as group:ops) has gatewayAdmin on projects/p under the condition \"dev\" \
             (resource.labels.env == 'dev'), which does not hold\n\
             RBAC:  no; no rule there gives it\n       asked as user \"alice\" in groups ops\n"
        );
        let nothing = ExplainResponse {
            bindings: Vec::new(),
            roles: vec!["gatewayAdmin".into(), "owner".into()],
            ..answer
        };
        let text = told(&request, &nothing);
        assert!(
            text.contains("roles with it: gatewayAdmin, owner"),
            "{text}"
        );
    }
}

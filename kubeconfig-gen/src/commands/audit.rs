//! `towline audit …`.

use serde_json::Value;
use towline_proto::{
    api::{ListAuditRequest, ListAuditResponse},
    names::{Location, Membership},
};

use super::{
    Error,
    context::{Context, call, refused},
};
use crate::{
    cli::{AuditCommand, Format, ListAudit, MembershipName, Since},
    clock,
    output::remark,
    table::Table,
};

pub(super) async fn run(context: &Context, command: AuditCommand) -> Result<(), Error> {
    let AuditCommand::List(asked) = command;
    let ListAudit {
        membership,
        location,
        user,
        since,
        limit,
        request_id,
        all_projects,
    } = *asked;
    let api = context.api()?;
    let (project, membership) = match membership {
        _ if all_projects => (String::new(), String::new()),
        Some(MembershipName::Whole(membership)) => {
            (membership.project.to_string(), membership.to_string())
        }
        Some(MembershipName::Short(id)) => {
            let project = context.project_or_only(&api).await?;
            let membership = Membership {
                project: project.clone(),
                location: location.location.unwrap_or_else(Location::global),
                id,
            };
            (project.to_string(), membership.to_string())
        }
        None => (
            context.project_or_only(&api).await?.to_string(),
            String::new(),
        ),
    };
    let since = since.map(|since| match since {
        Since::At(unix) => unix,
        Since::Ago(seconds) => clock::unix_now().saturating_sub(seconds),
    });
    let request = ListAuditRequest {
        project,
        membership,
        user: user.unwrap_or_default(),
        since: since.map(|unix| prost_types::Timestamp {
            seconds: i64::try_from(unix).unwrap_or(i64::MAX),
            nanos: 0,
        }),
        limit,
        request_id: request_id.unwrap_or_default(),
    };
    let answer: ListAuditResponse = call(&api, "Audit/List", &request).await?;
    let events = answer
        .events
        .iter()
        .map(|event| serde_json::from_str(event))
        .collect::<Result<Vec<Value>, _>>()
        .map_err(|error| refused(format!("the gateway's events are not understood: {error}")))?;
    show(context, &events)?;
    if answer.incomplete {
        remark(
            "There may be older events; narrow the search with --since, --user or --membership, or raise --limit.",
        );
    }
    Ok(())
}

fn show(context: &Context, events: &[Value]) -> Result<(), Error> {
    match context.output.format() {
        Some(Format::Json | Format::Yaml) => {
            return Ok(context.output.value(&Value::Array(events.to_vec()))?);
        }
        Some(Format::Name) => {
            let ids: String = events
                .iter()
                .map(|event| text(event, &["auditID"]) + "\n")
                .collect();
            return Ok(context.output.text(&ids)?);
        }
        None | Some(Format::Wide) => {}
    }
    if events.is_empty() {
        remark("Nothing was found.");
        return Ok(());
    }
    let wide = context.output.is_wide();
    let mut titles = vec!["TIME", "USER", "VERB", "CODE", "WHAT", "REASON"];
    if wide {
        titles.extend(["STAGE", "REQUEST", "FROM", "MEMBERSHIP"]);
    }
    let mut table = Table::new(titles);
    for event in events {
        let mut cells = vec![
            text(event, &["stageTimestamp"]),
            text(event, &["user", "username"]),
            text(event, &["verb"]),
            text(event, &["responseStatus", "code"]),
            what(event),
            text(event, &["annotations", "towline.dev/reason"]),
        ];
        if wide {
            cells.extend([
                text(event, &["stage"]),
                text(event, &["auditID"]),
                text(event, &["sourceIPs", "0"]),
                text(event, &["annotations", "towline.dev/membership"]),
            ]);
        }
        table.row(cells);
    }
    Ok(context.output.text(&table.render())?)
}

/// The object, or the path where it is none.
fn what(event: &Value) -> String {
    let part = |key| text(event, &["objectRef", key]);
    let (resource, name) = (part("resource"), part("name"));
    if resource.is_empty() {
        return text(event, &["requestURI"]);
    }
    let subresource = part("subresource");
    [part("namespace"), resource, name, subresource]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("/")
}

/// A value where there is one, as text.
fn text(event: &Value, path: &[&str]) -> String {
    let value = path.iter().try_fold(event, |value, key| match value {
        Value::Array(values) => values.get(key.parse::<usize>().ok()?),
        value => value.get(key),
    });
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.chars().filter(|c| !c.is_control()).collect(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_says_what_was_done() {
        let event = json!({
            "requestURI": "/api/v1/namespaces/n/pods/p/exec?stdin=true",
            "objectRef": {"resource": "pods", "namespace": "n", "name": "p", "subresource": "exec"},
            "responseStatus": {"code": 101}, "sourceIPs": ["192.0.2.1"], "userAgent": "a\u{1b}[31m",
        });
        assert_eq!(what(&event), "n/pods/p/exec");
        assert_eq!(what(&json!({"requestURI": "/version"})), "/version");
        assert_eq!(text(&event, &["responseStatus", "code"]), "101");
        assert_eq!(text(&event, &["sourceIPs", "0"]), "192.0.2.1");
        assert_eq!(text(&event, &["userAgent"]), "a[31m");
        assert_eq!(text(&event, &["no", "such"]), "");
    }
}

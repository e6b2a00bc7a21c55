//! `towline streams …`.

use towline_proto::api::{ListStreamsRequest, ListStreamsResponse};

use super::{
    Error,
    context::{Context, call},
    memberships::since,
};
use crate::{cli::StreamsCommand, clock, output::remark, table::Table};

pub(super) async fn run(context: &Context, command: StreamsCommand) -> Result<(), Error> {
    let StreamsCommand::List { ended } = command;
    let api = context.api()?;
    let project = context.project_or_only(&api).await?;
    let request = ListStreamsRequest {
        project: project.to_string(),
        ended,
    };
    let answer: ListStreamsResponse = call(&api, "Streams/List", &request).await?;
    if answer.streams.is_empty() && context.output.is_for_people() {
        remark(&format!(
            "No {} streams in project {project}.",
            if ended { "ended" } else { "running" }
        ));
        return Ok(());
    }
    let wide = context.output.is_wide();
    let table = || {
        let now = clock::unix_now();
        let mut titles = vec!["REQUEST", "PRINCIPAL", "MEMBERSHIP", "AGE"];
        if ended {
            titles.extend(["ENDED", "REASON"]);
        }
        if wide {
            titles.push("PROTOCOL");
        }
        titles.push("PATH");
        let mut table = Table::new(titles);
        for stream in &answer.streams {
            let mut cells = vec![
                stream.request_id.clone(),
                stream.principal.clone(),
                stream.membership.clone(),
                since(stream.started.as_ref(), now),
            ];
            if ended {
                cells.extend([since(stream.ended.as_ref(), now), stream.reason.clone()]);
            }
            if wide {
                cells.push(stream.protocol.clone());
            }
            cells.push(stream.path.clone());
            table.row(cells);
        }
        table
    };
    Ok(context
        .output
        .list(&answer.streams, |stream| stream.request_id.clone(), table)?)
}

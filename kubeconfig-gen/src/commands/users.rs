//! `towline users …`.

use towline_proto::api::{
    CreateUserRequest, CreateUserResponse, GroupRequest, ListUsersRequest, ListUsersResponse,
    ResetPasswordRequest, ResetPasswordResponse, SetDisabledRequest, User,
};

use super::{
    Error,
    context::{Context, call, refused},
    memberships::since,
};
use crate::{
    api::{Api, CallError},
    cli::UsersCommand,
    clock,
    output::remark,
    table::Table,
};

pub(super) async fn run(context: &Context, command: UsersCommand) -> Result<(), Error> {
    let api = context.api()?;
    match command {
        UsersCommand::Create {
            name,
            groups,
            operator,
        } => {
            let request = CreateUserRequest {
                name,
                groups,
                operator,
            };
            let answer: Result<CreateUserResponse, Error> =
                call(&api, "Users/Create", &request).await;
            let answer = answer.map_err(|error| match error {
                Error::Call(CallError::Refused(refusal)) if refusal.code == "already_exists" => {
                    refused(format!(
                        "{refusal}; for a new one-time code run: towline users reset-password {}",
                        request.name
                    ))
                }
                other => other,
            })?;
            remark(&format!("Created user {}.", request.name));
            let expires = answer.expires.as_ref();
            let text = || sign_in(&api, &request.name, &answer.one_time_code, expires);
            Ok(context.output.one(&answer, &request.name, text)?)
        }
        UsersCommand::List => {
            let answer: ListUsersResponse = call(&api, "Users/List", &ListUsersRequest {}).await?;
            let table = || table(&answer.users);
            Ok(context
                .output
                .list(&answer.users, |user| user.name.clone(), table)?)
        }
        UsersCommand::Disable { name } => set_disabled(context, &api, name, true).await,
        UsersCommand::Enable { name } => set_disabled(context, &api, name, false).await,
        UsersCommand::ResetPassword { name } => {
            let request = ResetPasswordRequest { name };
            let answer: ResetPasswordResponse = call(&api, "Users/ResetPassword", &request).await?;
            remark(&format!(
                "The password and all sign-ins of {} have ended.",
                request.name
            ));
            let expires = answer.expires.as_ref();
            let text = || sign_in(&api, &request.name, &answer.one_time_code, expires);
            Ok(context.output.one(&answer, &request.name, text)?)
        }
        UsersCommand::AddGroup { name, groups } => {
            change(
                context,
                &api,
                "Users/AddGroup",
                GroupRequest { name, groups },
            )
            .await
        }
        UsersCommand::RemoveGroup { name, groups } => {
            change(
                context,
                &api,
                "Users/RemoveGroup",
                GroupRequest { name, groups },
            )
            .await
        }
    }
}

async fn set_disabled(
    context: &Context,
    api: &Api,
    name: String,
    disabled: bool,
) -> Result<(), Error> {
    let request = SetDisabledRequest { name, disabled };
    let user: User = call(api, "Users/SetDisabled", &request).await?;
    show(context, &user)
}

async fn change(
    context: &Context,
    api: &Api,
    method: &'static str,
    request: GroupRequest,
) -> Result<(), Error> {
    let user: User = call(api, method, &request).await?;
    show(context, &user)
}

fn show(context: &Context, user: &User) -> Result<(), Error> {
    Ok(context.output.one(user, &user.name, || {
        table(std::slice::from_ref(user)).render()
    })?)
}

fn table(users: &[User]) -> Table {
    let now = clock::unix_now();
    let mut table = Table::new(["NAME", "GROUPS", "OPERATOR", "STATUS", "AGE"]);
    for user in users {
        table.row([
            user.name.clone(),
            user.groups.join(","),
            if user.operator { "yes" } else { "no" }.to_owned(),
            if user.disabled { "Disabled" } else { "Enabled" }.to_owned(),
            since(user.created.as_ref(), now),
        ]);
    }
    table
}

fn sign_in(api: &Api, name: &str, code: &str, expires: Option<&prost_types::Timestamp>) -> String {
    let left = expires.map_or_else(String::new, |expires| {
        let left = u64::try_from(expires.seconds)
            .unwrap_or(0)
            .saturating_sub(clock::unix_now());
        format!(" (good once, for {})", clock::age(left))
    });
    format!(
        "One-time code{left}: {code}\n\
         {name} signs in with it and sets a password:\n  \
         towline login {} --username {name} --one-time-code {code}\n",
        api.gateway()
    )
}

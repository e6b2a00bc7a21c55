//! Policies of anything that has one, roles, and why somebody may or may not.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use towline_proto::{
    api::{
        self, CreateRoleRequest, DeleteRoleRequest, DeleteRoleResponse, ExplainRequest,
        ExplainResponse, GetPolicyRequest, GetRoleRequest, ListRolesRequest, ListRolesResponse,
        SetPolicyRequest, UpdateRoleRequest, cluster_answer::State, iam_server::Iam,
    },
    names::{Membership, Project},
};

use super::{
    Api,
    caller::{name, timestamp},
    internal,
};
use crate::{
    authn::Identity,
    error::Refused,
    explain::{self, ClusterAnswer},
    iam::{
        Binding, Condition, Considered, CustomRole, InvalidPolicy, MAX_MEMBERS, MAX_NAME, Member,
        Permission, Permissions, Policy, Principal, Resource, Role, RoleName,
    },
    store::{
        policies::PolicyError,
        roles::{RoleError, RoleRow},
    },
};

/// Groups that may be asked about at a time.
const MAX_GROUPS: usize = 2_000;

/// The longest title and description of a role or a condition, in characters.
const MAX_TITLE: usize = 100;
const MAX_DESCRIPTION: usize = 300;

#[tonic::async_trait]
impl Iam for Api {
    async fn get_policy(
        &self,
        request: Request<GetPolicyRequest>,
    ) -> Result<Response<api::Policy>, Status> {
        let resource: Resource = name("resource", &request.get_ref().resource)?;
        self.permitted(
            request.metadata(),
            resource.clone(),
            resource.get_iam_policy(),
        )
        .await?;
        self.read_policy(&resource).await.map(Response::new)
    }

    async fn set_policy(
        &self,
        request: Request<SetPolicyRequest>,
    ) -> Result<Response<api::Policy>, Status> {
        let resource: Resource = name("resource", &request.get_ref().resource)?;
        self.permitted(
            request.metadata(),
            resource.clone(),
            resource.set_iam_policy(),
        )
        .await?;
        let policy = request.into_inner().policy;
        self.write_policy(&resource, policy)
            .await
            .map(Response::new)
    }

    async fn list_roles(
        &self,
        request: Request<ListRolesRequest>,
    ) -> Result<Response<ListRolesResponse>, Status> {
        let project = &request.get_ref().project;
        let mut roles: Vec<api::Role> = Role::ALL.into_iter().map(predefined).collect();
        if project.is_empty() {
            self.caller(request.metadata()).await?;
        } else {
            let project: Project = name("project", project)?;
            self.permitted(request.metadata(), &project, Permission::RolesList)
                .await?;
            let own = self.gateway.store.roles(&project).await.map_err(internal)?;
            roles.extend(own.into_iter().map(custom));
        }
        Ok(Response::new(ListRolesResponse { roles }))
    }

    async fn get_role(
        &self,
        request: Request<GetRoleRequest>,
    ) -> Result<Response<api::Role>, Status> {
        let role = match name("name", &request.get_ref().name)? {
            RoleName::Predefined(role) => {
                self.caller(request.metadata()).await?;
                return Ok(Response::new(predefined(role)));
            }
            RoleName::Custom(role) => role,
        };
        self.permitted(request.metadata(), &role.project, Permission::RolesGet)
            .await?;
        let row = self.gateway.store.role(&role).await.map_err(internal)?;
        let row = row.ok_or_else(|| refused_role(RoleError::Unknown(role)))?;
        Ok(Response::new(custom(row)))
    }

    async fn create_role(
        &self,
        request: Request<CreateRoleRequest>,
    ) -> Result<Response<api::Role>, Status> {
        let (metadata, _, message) = request.into_parts();
        let row = role_row(message.role, self.gateway.clock.unix())?;
        self.permitted(&metadata, &row.role.project, Permission::RolesCreate)
            .await?;
        let made = self.gateway.store.create_role(&row).await;
        Ok(Response::new(custom(made.map_err(refused_role)?)))
    }

    async fn update_role(
        &self,
        request: Request<UpdateRoleRequest>,
    ) -> Result<Response<api::Role>, Status> {
        let (metadata, _, message) = request.into_parts();
        let row = role_row(message.role, 0)?;
        self.permitted(&metadata, &row.role.project, Permission::RolesUpdate)
            .await?;
        let store = &self.gateway.store;
        store.update_role(&row).await.map_err(refused_role)?;
        let row = store
            .role(&row.role)
            .await
            .map_err(internal)?
            .unwrap_or(row);
        Ok(Response::new(custom(row)))
    }

    async fn delete_role(
        &self,
        request: Request<DeleteRoleRequest>,
    ) -> Result<Response<DeleteRoleResponse>, Status> {
        let role: CustomRole = name("name", &request.get_ref().name)?;
        self.permitted(request.metadata(), &role.project, Permission::RolesDelete)
            .await?;
        let store = &self.gateway.store;
        store.delete_role(&role).await.map_err(refused_role)?;
        Ok(Response::new(DeleteRoleResponse {}))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let membership: Membership = name("membership", &message.membership)?;
        let asker = self
            .permitted(&metadata, &membership, Permission::IamExplain)
            .await?;
        let subject = self.subject(&message.member, message.groups).await?;
        let (question, permission) = explain::question(
            &message.verb,
            &message.resource,
            &message.subresource,
            &message.namespace,
            &message.name,
        )
        .map_err(Status::invalid_argument)?;
        let gateway = &self.gateway;
        let bindings = explain::iam(gateway, &subject, &membership, permission, &question)
            .await
            .map_err(internal)?;
        let asker = Arc::new(asker.identity);
        let answer =
            explain::cluster(gateway, asker, subject.clone(), &membership, &question).await;
        let cluster = match answer {
            Ok(answer) => answer,
            Err(refused @ Refused::Quota(_)) => {
                return Err(Status::resource_exhausted(refused.to_string()));
            }
            Err(refused) => ClusterAnswer::NotAsked(refused.to_string()),
        };
        let own = gateway.store.roles(&membership.project).await;
        let own = own.map_err(internal)?;
        let own = own
            .iter()
            .filter(|row| row.permissions.contains(permission));
        let roles = permission.roles().map(|role| role.to_string());
        Ok(Response::new(ExplainResponse {
            allowed: bindings.iter().any(Considered::gives),
            permission: permission.to_string(),
            bindings: bindings.into_iter().map(considered).collect(),
            roles: roles.chain(own.map(|row| row.role.to_string())).collect(),
            username: subject.user,
            groups: subject.groups,
            cluster: Some(cluster_answer(cluster)),
        }))
    }
}

impl Api {
    /// Somebody as a cluster would see them, as far as the gateway knows them, and with these groups.
    async fn subject(&self, member: &str, groups: Vec<String>) -> Result<Identity, Status> {
        let principal: Principal = name("member", member)?;
        if groups.len() > MAX_GROUPS {
            return Err(Status::invalid_argument(format!(
                "groups: {} are too many, {MAX_GROUPS} may be",
                groups.len()
            )));
        }
        if let Some(wrong) = groups.iter().find(|group| {
            group.is_empty() || group.len() > MAX_NAME || group.contains(char::is_control)
        }) {
            return Err(Status::invalid_argument(format!(
                "groups: {wrong:?} is no name of a group"
            )));
        }
        let mut known = match &principal {
            Principal::User(user) => {
                let user = self.gateway.store.user(user).await.map_err(internal)?;
                user.map(|user| user.groups).unwrap_or_default()
            }
            Principal::ServiceAccount(_) | Principal::Workload(_) => Vec::new(),
        };
        for group in groups {
            if !known.contains(&group) {
                known.push(group);
            }
        }
        Ok(Identity {
            user: principal.subject(),
            principal,
            ..Identity::user(String::new(), known)
        })
    }
}

fn considered(considered: Considered) -> api::ConsideredBinding {
    let (condition, value) = match considered.condition {
        None => (None, String::new()),
        Some((condition, value)) => {
            let value = value.map_or_else(|error| error, |value| value.to_string());
            (Some(condition_message(condition)), value)
        }
    };
    api::ConsideredBinding {
        resource: considered.resource.to_string(),
        role: considered.role.to_string(),
        member: considered
            .member
            .map(|member| member.to_string())
            .unwrap_or_default(),
        condition,
        value,
    }
}

fn cluster_answer(answer: ClusterAnswer) -> api::ClusterAnswer {
    let (state, reason) = match answer {
        ClusterAnswer::Allowed(reason) => (State::Allowed, reason),
        ClusterAnswer::Denied(reason) => (State::Denied, reason),
        ClusterAnswer::NotAsked(reason) => (State::NotAsked, reason),
    };
    api::ClusterAnswer {
        state: state.into(),
        reason,
    }
}

impl Api {
    /// A resource's policy, for a caller who may read it.
    pub(super) async fn read_policy(&self, resource: &Resource) -> Result<api::Policy, Status> {
        self.there(resource).await?;
        let policy = self.gateway.store.policy_of(resource).await;
        let policy = policy
            .map_err(internal)?
            .ok_or_else(|| refused(PolicyError::Unknown(resource.clone())))?;
        Ok(policy_message(policy))
    }

    /// Replaces a resource's policy, for a caller who may.
    pub(super) async fn write_policy(
        &self,
        resource: &Resource,
        policy: Option<api::Policy>,
    ) -> Result<api::Policy, Status> {
        let policy = policy.ok_or_else(|| Status::invalid_argument("policy is missing"))?;
        self.there(resource).await?;
        // Before any of them is looked at.
        let members = policy.bindings.iter().map(|binding| binding.members.len());
        let members = members.sum();
        if members > MAX_MEMBERS {
            return Err(refused(InvalidPolicy::TooManyMembers(members).into()));
        }
        let mut bindings: Vec<Binding> = Vec::new();
        for binding in policy.bindings {
            let members: Vec<Member> = binding
                .members
                .iter()
                .map(|member| name("policy.bindings.members", member))
                .collect::<Result<_, _>>()?;
            for member in &members {
                self.known(member).await?;
            }
            bindings.push(Binding {
                role: name("policy.bindings.role", &binding.role)?,
                members,
                condition: binding.condition.map(condition).transpose()?,
            });
        }
        let policy = Policy {
            etag: policy.etag,
            bindings,
        };
        let stored = self
            .gateway
            .store
            .set_policy_of(resource, &policy)
            .await
            .map_err(refused)?;
        Ok(policy_message(stored))
    }

    /// What is not there has no policy.
    async fn there(&self, resource: &Resource) -> Result<(), Status> {
        let store = &self.gateway.store;
        match resource {
            Resource::Membership(membership)
                if store
                    .membership(membership)
                    .await
                    .map_err(internal)?
                    .is_none() =>
            {
                Err(refused(PolicyError::Unknown(resource.clone())))
            }
            _ => Ok(()),
        }
    }

    /// A policy that names nobody is a typing error: it is refused while it can still be seen.
    pub(super) async fn known(&self, member: &Member) -> Result<(), Status> {
        let Member::Principal(Principal::User(user)) = member else {
            return Ok(());
        };
        match self.gateway.store.user(user).await.map_err(internal)? {
            Some(_) => Ok(()),
            // Whom another issuer vouches for is known when they come.
            None if self.gateway.config.authentication_config.is_some() => Ok(()),
            None => Err(Status::invalid_argument(format!(
                "member {:?} does not exist; create it first: towline users create {user}",
                member.to_string()
            ))),
        }
    }
}

fn condition(condition: api::Condition) -> Result<Condition, Status> {
    check_length(
        "policy.bindings.condition.title",
        &condition.title,
        MAX_TITLE,
    )?;
    check_length(
        "policy.bindings.condition.description",
        &condition.description,
        MAX_DESCRIPTION,
    )?;
    Ok(Condition {
        title: condition.title,
        description: condition.description,
        expression: condition.expression,
    })
}

fn check_length(field: &str, text: &str, most: usize) -> Result<(), Status> {
    let length = text.chars().count();
    if length > most || text.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!(
            "{field}: {most} printable characters at most, in one line; these are {length}"
        )));
    }
    Ok(())
}

fn role_row(role: Option<api::Role>, created: u64) -> Result<RoleRow, Status> {
    let role = role.ok_or_else(|| Status::invalid_argument("role is missing"))?;
    if let Ok(RoleName::Predefined(known)) = role.name.parse() {
        return Err(Status::invalid_argument(format!(
            "role.name: {known} is predefined and stays as it is; a project's own is named projects/PROJECT/roles/ROLE"
        )));
    }
    check_length("role.title", &role.title, MAX_TITLE)?;
    check_length("role.description", &role.description, MAX_DESCRIPTION)?;
    let permissions: Vec<Permission> = role
        .permissions
        .iter()
        .map(|permission| name("role.permissions", permission))
        .collect::<Result<_, _>>()?;
    if permissions.is_empty() {
        return Err(Status::invalid_argument(
            "role.permissions: a role holds one at least; see: towline iam roles describe owner",
        ));
    }
    Ok(RoleRow {
        role: name("role.name", &role.name)?,
        title: role.title,
        description: role.description,
        permissions: Permissions::of(&permissions),
        etag: role.etag,
        created,
    })
}

fn predefined(role: Role) -> api::Role {
    api::Role {
        name: role.name().to_owned(),
        title: role.title().to_owned(),
        description: String::new(),
        permissions: permission_names(role.permissions()),
        etag: String::new(),
        created: None,
    }
}

fn custom(row: RoleRow) -> api::Role {
    api::Role {
        name: row.role.to_string(),
        title: row.title,
        description: row.description,
        permissions: permission_names(row.permissions),
        etag: row.etag,
        created: Some(timestamp(row.created)),
    }
}

fn permission_names(permissions: Permissions) -> Vec<String> {
    permissions.iter().map(|held| held.to_string()).collect()
}

fn policy_message(policy: Policy) -> api::Policy {
    api::Policy {
        etag: policy.etag,
        bindings: policy
            .bindings
            .into_iter()
            .map(|binding| api::Binding {
                role: binding.role.to_string(),
                members: binding.members.iter().map(ToString::to_string).collect(),
                condition: binding.condition.map(condition_message),
            })
            .collect(),
    }
}

fn condition_message(condition: Condition) -> api::Condition {
    api::Condition {
        title: condition.title,
        description: condition.description,
        expression: condition.expression,
    }
}

fn refused(error: PolicyError) -> Status {
    let text = error.to_string();
    match error {
        PolicyError::Store(error) => internal(error),
        PolicyError::Invalid(_) | PolicyError::NoRole(_) => Status::invalid_argument(text),
        PolicyError::Unknown(_) => Status::not_found(text),
        PolicyError::Etag(_) => Status::aborted(text),
        PolicyError::NoOwner(_) => Status::failed_precondition(text),
    }
}

fn refused_role(error: RoleError) -> Status {
    let text = error.to_string();
    match error {
        RoleError::Store(error) => internal(error),
        RoleError::Exists(_) => Status::already_exists(text),
        RoleError::Unknown(_) | RoleError::NoProject(_) => Status::not_found(text),
        RoleError::Etag(_) => Status::aborted(text),
        RoleError::InUse { .. } => Status::failed_precondition(text),
        RoleError::TooMany(_) => Status::resource_exhausted(text),
    }
}

//! Registered clusters.

use std::collections::{BTreeMap, HashMap};

use tonic::{Request, Response, Status, metadata::MetadataMap};
use towline_proto::{
    api::{
        self, DeleteMembershipRequest, DeleteMembershipResponse, GenerateCredentialsRequest,
        GenerateCredentialsResponse, GetMembershipRequest, ListMembershipsRequest,
        ListMembershipsResponse, RegisterRequest, RegisterResponse, UpdateMembershipRequest,
        membership::State, memberships_server::Memberships,
    },
    endpoint,
    handshake::random_id,
    names::{Location, Membership, Project},
    registration::Registration,
};

use super::{
    Api,
    caller::{Caller, lacks, name, timestamp},
    internal,
};
use crate::{
    iam::Permission,
    store::{MembershipRow, memberships::MembershipError},
};

/// How long a registration token is good for, in seconds.
const TOKEN_SECONDS: u64 = 3600;

#[tonic::async_trait]
impl Memberships for Api {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let membership = resource(&message.project, &message.location, &message.name)?;
        self.permitted(&metadata, &membership, Permission::MembershipsCreate)
            .await?;
        check_labels(&message.labels)?;
        let gateway = &self.gateway;
        let token = random_id().and_then(|first| Ok(format!("{first}{}", random_id()?)));
        let token = token.map_err(|error| Status::internal(error.to_string()))?;
        let now = gateway.clock.unix();
        let expires = now + TOKEN_SECONDS;
        let row = gateway
            .store
            .register(&membership, message.renew, &token, now, expires)
            .await
            .map_err(refused)?;
        let row = if message.labels.is_empty() {
            row
        } else {
            let change = |labels: &mut BTreeMap<String, String>| {
                labels.extend(message.labels.clone());
            };
            let store = &gateway.store;
            let changed = store.change_labels(&membership, change).await;
            changed.map_err(refused)?
        };
        let registration = Registration {
            gateway: gateway
                .config
                .public_url
                .as_str()
                .trim_end_matches('/')
                .to_owned(),
            certificate_authority: gateway.certificate_authority.clone(),
            root_key: gateway.keys.root(),
            membership,
            token: Some(token),
            expires: Some(timestamp(expires).to_string()),
        };
        Ok(Response::new(RegisterResponse {
            membership: Some(self.message(row).await?),
            registration: yaml(&registration)?,
            expires: Some(timestamp(expires)),
        }))
    }

    async fn list(
        &self,
        request: Request<ListMembershipsRequest>,
    ) -> Result<Response<ListMembershipsResponse>, Status> {
        let project = &request.get_ref().project;
        let rows = if project.is_empty() {
            self.visible(request.metadata()).await?
        } else {
            let project: Project = name("project", project)?;
            self.listed(request.metadata(), &project).await?
        };
        let replica = self.gateway.replicas.id();
        let elsewhere = self.gateway.store.sessions_elsewhere(replica).await;
        let elsewhere = elsewhere.map_err(internal)?;
        let told = |row: MembershipRow| {
            let sessions = elsewhere.get(&row.membership).copied().unwrap_or_default();
            self.told(row, sessions)
        };
        let memberships = rows.into_iter().map(told).collect();
        Ok(Response::new(ListMembershipsResponse { memberships }))
    }

    async fn get(
        &self,
        request: Request<GetMembershipRequest>,
    ) -> Result<Response<api::Membership>, Status> {
        let (metadata, _, message) = request.into_parts();
        let membership = resource(&message.project, &message.location, &message.name)?;
        let row = self
            .existing(&metadata, membership, Permission::MembershipsGet)
            .await?;
        Ok(Response::new(self.message(row).await?))
    }

    async fn update(
        &self,
        request: Request<UpdateMembershipRequest>,
    ) -> Result<Response<api::Membership>, Status> {
        let (metadata, _, message) = request.into_parts();
        let membership = resource(&message.project, &message.location, &message.name)?;
        check_labels(&message.labels)?;
        let row = self
            .existing(&metadata, membership, Permission::MembershipsUpdate)
            .await?;
        let change = |labels: &mut BTreeMap<String, String>| {
            if message.clear_labels {
                labels.clear();
            }
            labels.retain(|key, _| !message.remove_labels.contains(key));
            labels.extend(message.labels.clone());
        };
        let row = self
            .gateway
            .store
            .change_labels(&row.membership, change)
            .await
            .map_err(refused)?;
        Ok(Response::new(self.message(row).await?))
    }

    async fn delete(
        &self,
        request: Request<DeleteMembershipRequest>,
    ) -> Result<Response<DeleteMembershipResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let membership = resource(&message.project, &message.location, &message.name)?;
        let row = self
            .existing(&metadata, membership, Permission::MembershipsDelete)
            .await?;
        self.gateway
            .store
            .delete_membership(&row.membership)
            .await
            .map_err(refused)?;
        self.gateway
            .tunnels
            .close(&row.membership, "the membership was deleted");
        Ok(Response::new(DeleteMembershipResponse {}))
    }

    async fn generate_credentials(
        &self,
        request: Request<GenerateCredentialsRequest>,
    ) -> Result<Response<GenerateCredentialsResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let membership = resource(&message.project, &message.location, &message.name)?;
        let row = self
            .existing(&metadata, membership, Permission::GenerateCredentials)
            .await?;
        let base = self
            .gateway
            .config
            .public_url
            .as_str()
            .trim_end_matches('/')
            .to_owned();
        Ok(Response::new(GenerateCredentialsResponse {
            server: base + &endpoint::path(&row.membership),
        }))
    }
}

impl Api {
    /// Every membership that the caller may see, wherever it is.
    async fn visible(&self, metadata: &MetadataMap) -> Result<Vec<MembershipRow>, Status> {
        let caller = self.caller(metadata).await?;
        let store = &self.gateway.store;
        let rows = store.memberships(None).await.map_err(internal)?;
        self.seen_by(&caller, rows).await
    }

    /// The memberships of a project: all of them, or those that the caller may see.
    async fn listed(
        &self,
        metadata: &MetadataMap,
        project: &Project,
    ) -> Result<Vec<MembershipRow>, Status> {
        let caller = self.caller(metadata).await?;
        let store = &self.gateway.store;
        let rows = store.memberships(Some(project)).await.map_err(internal)?;
        let list = Permission::MembershipsList;
        if self.may(&caller, &project.into(), list).await?.allowed() {
            return Ok(rows);
        }
        let seen = self.seen_by(&caller, rows).await?;
        if seen.is_empty() {
            self.permitted(metadata, project, list).await?;
        }
        Ok(seen)
    }

    async fn seen_by(
        &self,
        caller: &Caller,
        rows: Vec<MembershipRow>,
    ) -> Result<Vec<MembershipRow>, Status> {
        let mut seen = Vec::new();
        for row in rows {
            let resource = (&row.membership).into();
            let decision = self
                .may(caller, &resource, Permission::MembershipsGet)
                .await?;
            if decision.allowed() {
                seen.push(row);
            }
        }
        Ok(seen)
    }

    /// A membership that exists, for a caller who may know.
    async fn existing(
        &self,
        metadata: &MetadataMap,
        membership: Membership,
        permission: Permission,
    ) -> Result<MembershipRow, Status> {
        let caller = self.permitted(metadata, &membership, permission).await?;
        let store = &self.gateway.store;
        if let Some(row) = store.membership(&membership).await.map_err(internal)? {
            return Ok(row);
        }
        // Who may this in the whole project may know that it isn't there; a condition could be on what it would be.
        let decision = self.may(&caller, &(&membership).into(), permission).await?;
        if decision.conditional() {
            return Err(lacks(&caller, &(&membership).into(), permission));
        }
        let rows = store
            .memberships(Some(&membership.project))
            .await
            .map_err(internal)?;
        let nearest = crate::authz::nearest(&membership, &rows);
        Err(Status::not_found(
            crate::error::Refused::NoMembership {
                membership,
                nearest,
            }
            .to_string(),
        ))
    }

    async fn message(&self, row: MembershipRow) -> Result<api::Membership, Status> {
        let (store, replica) = (&self.gateway.store, self.gateway.replicas.id());
        let elsewhere = if store.is_shared() {
            let sessions = store.sessions_of(&row.membership).await;
            let sessions = sessions.map_err(internal)?.into_iter();
            let up = sessions.filter(|session| session.up && session.replica != replica);
            up.count()
        } else {
            0
        };
        Ok(self.told(row, elsewhere))
    }

    /// With so many sessions at other replicas.
    fn told(&self, row: MembershipRow, elsewhere: usize) -> api::Membership {
        let sessions = self.gateway.tunnels.sessions(&row.membership) + elsewhere;
        let (state, since) = match (&row.public_key, row.connected_since, row.disconnected_since) {
            (None, ..) => (State::Pending, row.created),
            (Some(_), Some(since), _) => (State::Connected, since),
            // A gateway that is being replaced noted its sessions' end after this one's had begun.
            (Some(_), None, since) if sessions > 0 => {
                (State::Connected, since.unwrap_or(row.created))
            }
            (Some(_), None, since) => (State::Disconnected, since.unwrap_or(row.created)),
        };
        api::Membership {
            project: row.membership.project.to_string(),
            location: row.membership.location.to_string(),
            name: row.membership.id.to_string(),
            external_id: row.external_id,
            kubernetes_version: row.kubernetes_version,
            agent_version: row.agent_version,
            state: state.into(),
            state_since: Some(timestamp(since)),
            created: Some(timestamp(row.created)),
            sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
            labels: row.labels.into_iter().collect(),
        }
    }
}

/// Keys and values as Kubernetes has them.
fn check_labels(labels: &HashMap<String, String>) -> Result<(), Status> {
    let part = |text: &str| {
        let ends = |end: Option<char>| end.is_some_and(|c| c.is_ascii_alphanumeric());
        (1..=63).contains(&text.len())
            && ends(text.chars().next())
            && ends(text.chars().next_back())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let is_key = |key: &str| match key.split_once('/') {
        None => part(key),
        Some((prefix, name)) => prefix.len() <= 253 && prefix.split('.').all(part) && part(name),
    };
    for (key, value) in labels {
        if !is_key(key) || !(value.is_empty() || part(value)) {
            let label: String = format!("{key}={value}").chars().take(200).collect();
            return Err(Status::invalid_argument(format!(
                "labels: {label:?} is none: KEY=VALUE, both of 1 to 63 letters, digits, -, _ and ., the first and last \
                 a letter or digit; a key may begin with DOMAIN/, a value may be empty"
            )));
        }
    }
    Ok(())
}

fn resource(project: &str, location: &str, id: &str) -> Result<Membership, Status> {
    Ok(Membership {
        project: name("project", project)?,
        location: if location.is_empty() {
            Location::global()
        } else {
            name("location", location)?
        },
        id: name("name", id)?,
    })
}

/// YAML is a superset of JSON; written as people write it, all the same.
fn yaml(registration: &Registration) -> Result<String, Status> {
    serde_saphyr::to_string(registration).map_err(|error| Status::internal(error.to_string()))
}

fn refused(error: MembershipError) -> Status {
    let text = error.to_string();
    match error {
        MembershipError::Store(error) => internal(error),
        MembershipError::Labels(_) => Status::invalid_argument(text),
        MembershipError::Exists(_) => Status::already_exists(text),
        MembershipError::Unknown(_) | MembershipError::NoProject(_) => Status::not_found(text),
    }
}

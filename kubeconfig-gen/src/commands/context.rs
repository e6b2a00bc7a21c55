//! What every command needs: which gateway, which project, and how to print.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
};

use secrecy::SecretString;
use towline_proto::{
    api::{
        ListMembershipsRequest, ListMembershipsResponse, ListProjectsRequest, ListProjectsResponse,
    },
    names::{Location, Membership, MembershipId, Project},
};

use super::Error;
use crate::{
    api::Api,
    bounded,
    cli::{Global, MembershipName},
    gateway_url::GatewayUrl,
    http,
    output::{Output, remark},
    progress,
    service_account::ActAs,
    settings::{ConfigDir, Gateway, SettingsError},
    tokens::Tokens,
    workload::Workload,
};

/// The flags and files that a command runs with.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) dir: ConfigDir,
    pub(super) output: Output,
    /// A workload's sign-in that was given with the command.
    pub(super) workload: Option<Workload>,
    global: Global,
}

/// A gateway that is meant, with what is known of it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) url: GatewayUrl,
    pub(super) settings: Gateway,
}

impl Context {
    pub(super) fn new(global: Global) -> Result<Self, Error> {
        let dir = ConfigDir::find(global.config_dir.clone(), global.xdg_config_home.clone())?;
        let workload = global
            .credentials
            .as_deref()
            .map(Workload::read)
            .transpose()?;
        Ok(Self {
            dir,
            output: Output::new(global.output),
            workload,
            global,
        })
    }

    /// The gateway that is meant: named, current, or the only one.
    pub(super) fn known(&self) -> Result<Known, Error> {
        let name = match &self.global.gateway {
            Some(given) => {
                if let Some(settings) = self.by_name(given)? {
                    return Self::parsed(settings);
                }
                let url: GatewayUrl = given.parse()?;
                let settings = self
                    .dir
                    .gateway(&url.name())?
                    .unwrap_or_else(|| Gateway::new(&url));
                return Ok(Known { url, settings });
            }
            None if self.workload.is_some() => return self.known_by_workload(),
            None => match self.dir.current()? {
                Some(name) => name,
                None => match self.dir.gateways()?.as_slice() {
                    [only] => only.clone(),
                    [] => {
                        return Err(refused(
                            "no gateway is known yet; run: towline login https://HOST",
                        ));
                    }
                    several => {
                        return Err(refused(format!(
                            "which gateway? There are {}; run: towline config set gateway NAME",
                            several.join(", ")
                        )));
                    }
                },
            },
        };
        match self.dir.gateway(&name)? {
            Some(settings) => Self::parsed(settings),
            None => Err(refused(format!(
                "the current gateway {name:?} is not known (any more); run: towline login https://HOST"
            ))),
        }
    }

    fn known_by_workload(&self) -> Result<Known, Error> {
        let Some(workload) = &self.workload else {
            return Err(refused("no credential configuration was given"));
        };
        let url: GatewayUrl = workload.gateway.parse()?;
        let kept = self.dir.gateway(&url.name())?;
        let mut settings = kept.unwrap_or_else(|| Gateway::new(&url));
        if workload.certificate_authority_data.is_some() {
            settings
                .certificate_authority
                .clone_from(&workload.certificate_authority_data);
        }
        Ok(Known { url, settings })
    }

    fn by_name(&self, name: &str) -> Result<Option<Gateway>, SettingsError> {
        // Only what can be a name may become part of a path.
        let is_name = !name.is_empty()
            && !name.starts_with('.')
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if is_name {
            self.dir.gateway(name)
        } else {
            Ok(None)
        }
    }

    fn parsed(settings: Gateway) -> Result<Known, Error> {
        Ok(Known {
            url: settings.gateway.parse()?,
            settings,
        })
    }

    /// The tokens of a gateway.
    pub(super) fn tokens(&self, gateway: &GatewayUrl) -> Tokens {
        self.dir.tokens(gateway, self.workload.as_ref())
    }

    /// The credential configuration that was given with the command.
    pub(super) fn credentials(&self) -> Option<PathBuf> {
        let file = self.global.credentials.as_deref()?;
        Some(std::path::absolute(file).unwrap_or_else(|_| file.to_owned()))
    }

    /// The service account to act as: named on the command line or in the environment, or set.
    pub(super) fn act_as(&self, known: &Known) -> Result<Option<ActAs>, Error> {
        if let Some(named) = self.global.act_as()? {
            return Ok(named);
        }
        let set = known.settings.impersonate_service_account.as_deref();
        Ok(set.map(str::parse).transpose()?)
    }

    /// The API of the gateway that is meant.
    pub(super) fn api(&self) -> Result<Api, Error> {
        self.api_of(&self.known()?)
    }

    /// The API of a gateway.
    pub(super) fn api_of(&self, known: &Known) -> Result<Api, Error> {
        Ok(self.own_api_of(known)?.acting_as(self.act_as(known)?))
    }

    /// The API of a gateway as the caller, whoever there is to act as.
    pub(super) fn own_api_of(&self, known: &Known) -> Result<Api, Error> {
        let http = http::client(known.settings.certificate_authority.as_deref())?;
        Ok(Api::new(
            http,
            known.url.clone(),
            self.tokens(&known.url),
            self.global.verbose > 0,
        ))
    }

    /// The project that was named or is the default.
    pub(super) fn project(&self) -> Result<Option<Project>, Error> {
        match &self.global.project {
            Some(project) => Ok(Some(project.clone())),
            None => Ok(self.known()?.settings.project),
        }
    }

    /// The project that was named, is the default, or is the only one that the caller sees.
    pub(super) async fn project_or_only(&self, api: &Api) -> Result<Project, Error> {
        if let Some(project) = self.project()? {
            return Ok(project);
        }
        let list: ListProjectsResponse =
            call(api, "Projects/List", &ListProjectsRequest {}).await?;
        let names: Vec<&str> = list
            .projects
            .iter()
            .map(|project| project.name.as_str())
            .collect();
        match names.as_slice() {
            [only] => {
                remark(&format!(
                    "Using project {only}, the only one that you may see."
                ));
                only.parse()
                    .map_err(|_| refused(format!("the gateway named a project {only:?}")))
            }
            [] => Err(refused(
                "no project is named, and there is none that you may see; \
                 a gateway operator makes one with: towline projects create NAME",
            )),
            several => Err(refused(format!(
                "which project? There are {}; give --project NAME, or run: towline config set project NAME",
                several.join(", ")
            ))),
        }
    }

    /// The membership of that name; looked for in every project when none is named.
    pub(super) async fn resolve(
        &self,
        api: &Api,
        name: &MembershipName,
        location: Option<&Location>,
    ) -> Result<Membership, Error> {
        let id = match name {
            MembershipName::Whole(membership) => return Ok(membership.clone()),
            MembershipName::Short(id) => id,
        };
        if let Some(project) = self.project()? {
            let location = location.cloned().unwrap_or_else(Location::global);
            return Ok(Membership {
                project,
                location,
                id: id.clone(),
            });
        }
        let all = list(api, None).await?;
        choose(&all, id, location)
    }

    /// Asks a yes-or-no question; a refusal that says what to type where nobody can be asked.
    pub(super) fn confirm(&self, question: &str, otherwise: &str) -> Result<(), Error> {
        if !io::stdin().is_terminal() {
            return Err(refused(otherwise));
        }
        let answer = ask(&format!("{question} [y/N] "))?;
        if matches!(answer.to_lowercase().as_str(), "y" | "yes") {
            Ok(())
        } else {
            Err(refused("nothing was changed"))
        }
    }
}

/// The one membership of that name, among all that the caller sees.
fn choose(
    all: &[Membership],
    id: &MembershipId,
    location: Option<&Location>,
) -> Result<Membership, Error> {
    let found: Vec<&Membership> = all
        .iter()
        .filter(|membership| {
            membership.id == *id && location.is_none_or(|location| membership.location == *location)
        })
        .collect();
    match found.as_slice() {
        [only] => Ok((*only).clone()),
        [] => {
            let nearest = crate::nearest::nearest(
                id.as_str(),
                all.iter().map(|membership| membership.id.as_str()),
            );
            let hint = match nearest {
                Some(name) => format!("did you mean {name}?"),
                None => "run: towline memberships list".to_owned(),
            };
            Err(refused(format!(
                "no membership {id:?} that you may see; {hint}",
                id = id.as_str()
            )))
        }
        several => {
            let names: Vec<String> = several.iter().map(ToString::to_string).collect();
            Err(refused(format!(
                "{id} is ambiguous: there are {}; give one of these names, or --project",
                names.join(", ")
            )))
        }
    }
}

/// All memberships that the caller sees, of one project or all.
pub(super) async fn list(api: &Api, project: Option<&Project>) -> Result<Vec<Membership>, Error> {
    let request = ListMembershipsRequest {
        project: project.map(ToString::to_string).unwrap_or_default(),
    };
    let answer: ListMembershipsResponse = call(api, "Memberships/List", &request).await?;
    answer.memberships.iter().map(name_of).collect()
}

/// A membership's resource name, if the gateway gave a good one.
pub(super) fn name_of(membership: &towline_proto::api::Membership) -> Result<Membership, Error> {
    let towline_proto::api::Membership {
        project,
        location,
        name,
        ..
    } = membership;
    format!("projects/{project}/locations/{location}/memberships/{name}")
        .parse()
        .map_err(|e| refused(format!("the gateway named a membership that can't be: {e}")))
}

/// Calls a method with a sign of life.
pub(super) async fn call<Request, Answer>(
    api: &Api,
    method: &'static str,
    request: &Request,
) -> Result<Answer, Error>
where
    Request: prost_reflect::ReflectMessage,
    Answer: prost_reflect::ReflectMessage + Default,
{
    let what = format!("Waiting for {}", api.gateway().authority());
    Ok(progress::during(&what, api.call(method, request)).await?)
}

/// A sentence as an error.
pub(super) fn refused(sentence: impl Into<String>) -> Error {
    Error::Refused(sentence.into())
}

/// Asks for a line on the terminal.
pub(super) fn ask(question: &str) -> Result<String, Error> {
    let error = |e| Error::Read("the terminal".to_owned(), e);
    let mut err = io::stderr().lock();
    err.write_all(question.as_bytes())
        .and_then(|()| err.flush())
        .map_err(error)?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(error)?;
    Ok(line.trim().to_owned())
}

/// Asks for something that is not to be seen.
pub(super) fn ask_secret(question: &str) -> Result<SecretString, Error> {
    let secret = rpassword::prompt_password(question)
        .map_err(|e| Error::Read("the terminal".to_owned(), e))?;
    Ok(secret.into())
}

/// A secret from a file, without the line end behind it.
pub(super) fn secret_file(path: &Path) -> Result<SecretString, Error> {
    let text =
        bounded::read_to_string(path).map_err(|e| Error::Read(path.display().to_string(), e))?;
    one_line(text, &path.display().to_string())
}

/// A secret from standard input, without the line end behind it.
pub(super) fn secret_stdin() -> Result<SecretString, Error> {
    let text = bounded::text(io::stdin().lock())
        .map_err(|e| Error::Read("standard input".to_owned(), e))?;
    one_line(text, "standard input")
}

fn one_line(text: String, from: &str) -> Result<SecretString, Error> {
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err(refused(format!(
            "{from} is empty where a password should be"
        )));
    }
    Ok(line.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_is_found_wherever_it_is() {
        let all: Vec<Membership> = [
            "projects/p/locations/global/memberships/prod",
            "projects/q/locations/global/memberships/stage",
            "projects/r/locations/global/memberships/stage",
        ]
        .map(|name| name.parse().unwrap())
        .to_vec();
        let choose = |id: &str| choose(&all, &id.parse().unwrap(), None).map_err(|e| e.to_string());
        assert_eq!(choose("prod"), Ok(all[0].clone()));
        assert!(choose("prud").unwrap_err().ends_with("did you mean prod?"));
        assert!(
            choose("nothing-alike")
                .unwrap_err()
                .ends_with("towline memberships list")
        );
        assert!(choose("stage").unwrap_err().contains("projects/q"));
    }

    #[test]
    fn a_secret_ends_with_its_line() {
        use secrecy::ExposeSecret;
        for text in ["pw", "pw\n", "pw\r\n"] {
            assert_eq!(
                one_line(text.to_owned(), "x").unwrap().expose_secret(),
                "pw"
            );
        }
        assert_eq!(
            one_line(" pw \n".to_owned(), "x").unwrap().expose_secret(),
            " pw "
        );
        assert!(one_line("\n".to_owned(), "x").is_err());
    }
}

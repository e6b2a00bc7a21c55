//! Names of contexts, made from a template.

use std::{fmt::Write, str::FromStr};

use towline_proto::names::Membership;

/// `{host}`, `{project}`, `{location}` and `{membership}` among other text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Host,
    Project,
    Location,
    Membership,
}

/// What is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// A placeholder that there isn't.
    #[error(
        "{{{0}}} is no placeholder; there are {{host}}, {{project}}, {{location}} and {{membership}}"
    )]
    Placeholder(String),
    /// A brace without its other.
    #[error("a `{{` has no `}}`")]
    Open,
    /// Nothing at all.
    #[error("it is empty")]
    Empty,
}

impl Template {
    /// The name for one membership.
    pub fn name(&self, host: &str, membership: &Membership) -> String {
        self.0.iter().fold(String::new(), |mut name, part| {
            let written = match part {
                Part::Text(text) => name.write_str(text),
                Part::Host => name.write_str(host),
                Part::Project => write!(name, "{}", membership.project),
                Part::Location => write!(name, "{}", membership.location),
                Part::Membership => write!(name, "{}", membership.id),
            };
            // Writing to a string can't fail.
            written.map_or_else(|_| String::new(), |()| name)
        })
    }
}

impl Default for Template {
    fn default() -> Self {
        let text = |text: &str| Part::Text(text.to_owned());
        Self(vec![
            text("towline_"),
            Part::Host,
            text("_"),
            Part::Project,
            text("_"),
            Part::Location,
            text("_"),
            Part::Membership,
        ])
    }
}

impl FromStr for Template {
    type Err = InvalidTemplate;

    fn from_str(template: &str) -> Result<Self, InvalidTemplate> {
        if template.is_empty() {
            return Err(InvalidTemplate::Empty);
        }
        let mut parts = Vec::new();
        let mut rest = template;
        while let Some((text, behind)) = rest.split_once('{') {
            let (placeholder, behind) = behind.split_once('}').ok_or(InvalidTemplate::Open)?;
            parts.push(Part::Text(text.to_owned()));
            parts.push(match placeholder {
                "host" => Part::Host,
                "project" => Part::Project,
                "location" => Part::Location,
                "membership" => Part::Membership,
                other => return Err(InvalidTemplate::Placeholder(other.to_owned())),
            });
            rest = behind;
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        Ok(Self(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        "projects/p/locations/global/memberships/m".parse().unwrap()
    }

    #[test]
    fn the_default_says_everything() {
        assert_eq!(
            Template::default().name("gw", &membership()),
            "towline_gw_p_global_m"
        );
        let same: Template = "towline_{host}_{project}_{location}_{membership}"
            .parse()
            .unwrap();
        assert_eq!(same, Template::default());
    }

    #[test]
    fn text_and_placeholders_mix() {
        let template: Template = "{membership}.{project}!".parse().unwrap();
        assert_eq!(template.name("gw", &membership()), "m.p!");
        assert_eq!(
            "plain"
                .parse::<Template>()
                .unwrap()
                .name("gw", &membership()),
            "plain"
        );
    }

    #[test]
    fn a_bad_one_says_what_is_there() {
        let error = "{cluster}".parse::<Template>().unwrap_err().to_string();
        assert!(
            error.starts_with("{cluster} is no placeholder") && error.contains("{membership}"),
            "{error}"
        );
        assert_eq!("a{host".parse::<Template>(), Err(InvalidTemplate::Open));
        assert_eq!("".parse::<Template>(), Err(InvalidTemplate::Empty));
    }
}

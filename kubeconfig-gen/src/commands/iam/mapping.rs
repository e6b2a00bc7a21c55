//! Attribute mappings as they are typed: `subject=assertion.sub,groups=['a', 'b']`.

/// Pairs of key and expression. Commas in brackets and quotes belong to the expression.
pub(super) fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for part in split(text) {
        let part = part.trim();
        let (key, expression) = part
            .split_once('=')
            .filter(|(key, expression)| !key.trim().is_empty() && !expression.trim().is_empty())
            .ok_or_else(|| {
                format!(
                    "--attribute-mapping: {part:?} is not KEY=CEL, such as subject=assertion.sub"
                )
            })?;
        let key = key.trim().to_owned();
        if pairs.iter().any(|(other, _)| *other == key) {
            return Err(format!("--attribute-mapping: {key:?} is there twice"));
        }
        pairs.push((key, expression.trim().to_owned()));
    }
    Ok(pairs)
}

fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut quote, mut start) = (0_usize, None, 0);
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(_), '\\') if !escaped => {
                escaped = true;
                continue;
            }
            (Some(open), _) if c == open && !escaped => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                parts.extend(text.get(start..at));
                start = at + 1;
            }
            (None, _) => {}
        }
        escaped = false;
    }
    parts.extend(text.get(start..));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_of_an_expression_are_its_own() {
        let parsed = parse(
            "subject=assertion.sub, groups=['a', \"b,c\"],attribute.x=f(1,{'k,':2}) == 3,attribute.y='it\\',s'",
        )
        .unwrap();
        let expected = [
            ("subject", "assertion.sub"),
            ("groups", "['a', \"b,c\"]"),
            ("attribute.x", "f(1,{'k,':2}) == 3"),
            ("attribute.y", "'it\\',s'"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(parsed, expected);
    }

    #[test]
    fn what_is_no_pair_is_told() {
        for (text, word) in [
            ("subject", "is not KEY=CEL"),
            ("=x", "is not KEY=CEL"),
            ("subject=", "is not KEY=CEL"),
            ("a=1,", "is not KEY=CEL"),
            ("a=1,a=2", "twice"),
        ] {
            assert!(parse(text).unwrap_err().contains(word), "{text}");
        }
    }
}

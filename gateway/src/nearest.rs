//! Names like the one that was asked for and isn't there.

/// Up to three of `names` that share most of their letters with `asked`, the nearest first.
pub(crate) fn nearest<'a>(asked: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(usize, &str)> = names.map(|name| (distance(asked, name), name)).collect();
    scored.sort_unstable();
    let near = asked.len().div_ceil(2).max(2);
    scored
        .into_iter()
        .filter(|(distance, _)| *distance <= near)
        .take(3)
        .map(|(_, name)| name.to_owned())
        .collect()
}

/// Levenshtein's distance, in bytes; both are short names.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (y, above) in b.bytes().zip(row.iter().skip(1).copied()) {
            let best = if x == y {
                diagonal
            } else {
                1 + diagonal.min(above).min(left)
            };
            diagonal = above;
            left = best;
            next.push(best);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, d) in [
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("edge", "edge", 0),
            ("edge-1", "edge-2", 1),
        ] {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }

    #[test]
    fn near_names_come_first_and_far_ones_not_at_all() {
        let names = ["prod-eu", "prod-us", "staging", "prd-eu"];
        assert_eq!(
            nearest("prod-eu", names.into_iter()),
            ["prod-eu", "prd-eu", "prod-us"]
        );
        assert!(nearest("x", names.into_iter()).is_empty());
    }
}

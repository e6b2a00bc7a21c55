//! The name that somebody may have meant.

/// The nearest of `names`, if one is near enough to be a slip.
pub fn nearest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|name| (distance(typed, name), name))
        .filter(|(distance, name)| *distance <= 1.max(name.len().min(typed.len()) / 2))
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance: insertions, deletions and replacements from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        let mut left = i + 1;
        for (pair, y) in row.windows(2).zip(&b) {
            let [diagonal, above] = pair else { continue };
            left = (above + 1)
                .min(left + 1)
                .min(diagonal + usize::from(x != *y));
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_seen_through_and_another_word_is_not() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        let names = ["prod", "staging", "dev"];
        assert_eq!(nearest("prd", names), Some("prod"));
        assert_eq!(nearest("stagign", names), Some("staging"));
        assert_eq!(nearest("pord", names), Some("prod"));
        assert_eq!(nearest("cluster", names), None);
    }
}

//! Inputs made from a corpus, the same ones every time: a small fuzzer without feedback, for the short run.

/// A sequence of numbers (SplitMix64), from a seed.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// The sequence of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which isn't 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() % end as u64).unwrap_or_default()
    }
}

/// What is worth putting anywhere: what parsers take for the end, the beginning, or another form of something.
const WORDS: &[&str] = &[
    "/",
    "//",
    "/./",
    "/../",
    "%2f",
    "%2e",
    "%2e%2e",
    "%5c",
    "%25",
    "%00",
    "%",
    "%zz",
    "\\",
    ";",
    "?",
    "&",
    "=",
    "#",
    "@",
    ":",
    ",",
    ".",
    "..",
    "*",
    "watch",
    "watch=1",
    "watch=0",
    "%77atch=true",
    "proxy",
    "namespaces",
    "api",
    "apis",
    "exec",
    "log",
    "follow=true",
    "/v1/projects/p/locations/global/memberships/m",
    "upgrade",
    "connection",
    "websocket",
    "impersonate-user",
    "Impersonate_Group",
    "system:",
    "system:masters",
    "authorization",
    "bearer ",
    "\n",
    "\r\n",
    "\t",
    " ",
    "\0",
    "\u{7f}",
    "\u{2028}",
    "\u{fffd}",
    "ä",
    "<",
    ">",
    "\"",
    "'",
    "{",
    "}",
    "[",
    "]",
    "null",
    "true",
    "-1",
    "0",
    "18446744073709551616",
    "1e309",
    "&a",
    "*a",
    "<<: ",
    "--- ",
    "|",
    "- ",
    "!!",
    "127.0.0.1",
    "[::1]",
    "::ffff:10.0.0.1",
    "localhost",
    "http://",
    "javascript:",
    "evil.test",
    "code=",
    "redirect_uri=",
    "eyJ",
    "none",
];

/// One input, made of two of the corpus.
pub fn input(numbers: &mut Numbers, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[numbers.below(corpus.len())].clone();
    for _ in 0..=numbers.below(6) {
        let at = numbers.below(input.len() + 1);
        let end = at + numbers.below(input.len() - at + 1).min(24);
        match numbers.below(7) {
            0 | 1 => {
                let word = WORDS[numbers.below(WORDS.len())];
                input.splice(at..at, word.bytes());
            }
            2 => {
                let word = WORDS[numbers.below(WORDS.len())];
                input.splice(at..end, word.bytes());
            }
            3 => drop(input.drain(at..end)),
            4 => {
                let other = &corpus[numbers.below(corpus.len())];
                let from = numbers.below(other.len() + 1);
                let to = from + numbers.below(other.len() - from + 1);
                input.splice(at..end, other[from..to].iter().copied());
            }
            5 => {
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
            _ if at < input.len() => input[at] = numbers.number().to_be_bytes()[0],
            _ => {}
        }
    }
    input.truncate(16 * 1024);
    input
}

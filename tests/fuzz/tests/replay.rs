//! Every property over its corpus, which holds what was once found, and over a thousand inputs made from it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what went wrong by panicking"
)]

use std::{collections::BTreeSet, fs, panic::catch_unwind, path::Path};

use towline_fuzz::{
    TARGETS,
    mutate::{self, Numbers},
};

/// Inputs made for each property.
const MADE: usize = 1_000;

/// All corpora together, in bytes.
const MOST: u64 = 200 * 1024;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let mut paths: Vec<_> = fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_property_holds_for_its_corpus_and_what_is_made_from_it() {
    let mut failed = Vec::new();
    for (name, property) in TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        let mut numbers = Numbers::new(1);
        let made = (0..MADE).map(|_| mutate::input(&mut numbers, &corpus));
        let found = corpus
            .iter()
            .cloned()
            .chain(made)
            .find(|input| catch_unwind(|| property(input)).is_err());
        if let Some(input) = found {
            failed.push(format!("{name}: {:?}", String::from_utf8_lossy(&input)));
        }
    }
    assert!(failed.is_empty(), "properties that don't hold: {failed:#?}");
}

#[test]
fn corpora_are_small_and_somebodys() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let found: BTreeSet<String> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let named: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(found, named);
    let size: u64 = TARGETS
        .iter()
        .flat_map(|(name, _)| corpus(name))
        .map(|input| input.len() as u64)
        .sum();
    assert!(size < MOST, "{size} bytes");
}

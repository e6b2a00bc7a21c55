//! Documents: messages to the management API, kubeconfigs, registration files.

use serde_json::Value;
use towline::kubeconfig::{Credential, Document, Entry, document::Kind};
use towline_gateway::fuzzing;
use towline_proto::{names::Membership, registration::Registration};

/// What is read is what is said: writing it and reading it again changes nothing. The first line is the path.
pub(crate) fn json(data: &[u8]) {
    let Some(line) = data.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    let Ok(path) = std::str::from_utf8(&data[..line]) else {
        return;
    };
    let Some(said) = fuzzing::json(path, &data[line + 1..]) else {
        return;
    };
    let again = fuzzing::json(path, said.as_bytes()).expect("what was written can be read");
    assert_eq!(said, again);
}

/// A merge keeps what isn't ours, changes nothing the second time, and leaves a file that can be read.
pub(crate) fn kubeconfig(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(before) = Document::parse(text) else {
        return;
    };
    assert_eq!(again(&before), before);
    let membership: Membership = "projects/p/locations/global/memberships/m".parse().unwrap();
    let entry = Entry {
        name: "towline_gw_p_global_m".to_owned(),
        server: format!("https://gw/v1/{membership}"),
        certificate_authority: Some("PEM\n".to_owned()),
        credential: Credential::Exec(vec!["credential".to_owned(), "--gateway".to_owned()]),
    };
    let mut after = before.clone();
    for kind in Kind::ALL {
        after.put(kind, &entry);
        assert!(
            after.has(kind, &entry.name) && after.is_ours(kind, &entry.name),
            "{kind:?}"
        );
    }
    assert_eq!(after.current_context(), before.current_context());
    assert_eq!(foreign(&after, &entry.name), foreign(&before, &entry.name));
    let mut twice = again(&after);
    for kind in Kind::ALL {
        twice.put(kind, &entry);
    }
    assert_eq!(twice, after);
}

fn again(document: &Document) -> Document {
    let text = document.render().expect("a document has a text");
    Document::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// All that isn't in entries of this name.
fn foreign(document: &Document, name: &str) -> Value {
    let mut tree: Value = serde_saphyr::from_str(&document.render().unwrap()).unwrap();
    for list in ["clusters", "contexts", "users"] {
        let Some(entries) = tree.get_mut(list) else {
            tree[list] = Value::Array(Vec::new());
            continue;
        };
        if entries.is_null() {
            *entries = Value::Array(Vec::new());
        }
        entries
            .as_array_mut()
            .unwrap()
            .retain(|entry| entry["name"] != name);
    }
    // The order of keys is not of interest here.
    serde_json::from_str(&tree.to_string()).unwrap()
}

/// A registration file says itself again.
pub(crate) fn registration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(read) = serde_saphyr::from_str::<Registration>(text) else {
        return;
    };
    let text = serde_saphyr::to_string(&read).unwrap();
    assert_eq!(serde_saphyr::from_str::<Registration>(&text).unwrap(), read);
}

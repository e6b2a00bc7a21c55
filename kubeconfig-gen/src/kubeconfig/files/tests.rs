use super::*;
use crate::kubeconfig::document::tests::entry;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    fn sources(&self, names: &[&str]) -> Sources {
        let list = std::env::join_paths(names.iter().map(|name| self.file(name))).unwrap();
        Sources::find(None, Some(&list), None).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[tokio::test]
async fn what_is_new_goes_to_the_first_file_and_what_is_known_stays_where_it_is() {
    let dir = Dir::new();
    let sources = dir.sources(&["a", "b"]);
    let (one, two) = (entry("one"), entry("two"));
    dir.write("b", "");
    merge(&sources, std::slice::from_ref(&one), Some(&one.name))
        .await
        .unwrap();
    assert_eq!(
        dir.names(),
        ["b"],
        "no lock is left, and what is not there is not made"
    );
    dir.write("a", "apiVersion: v1\nkind: Config\n");

    let mut changed = one.clone();
    changed.server = changed.server.replace("gw", "gw2");
    let merged = merge(&sources, &[changed, two.clone()], None)
        .await
        .unwrap();
    assert_eq!(merged.written, [dir.file("a"), dir.file("b")]);
    assert_eq!(merged.current_context.as_deref(), Some(one.name.as_str()));
    assert!(dir.read("b").contains("gw2") && !dir.read("b").contains(&two.name));
    assert!(dir.read("a").contains(&two.name) && !dir.read("a").contains(&one.name));

    // The same once more writes nothing.
    let merged = merge(&sources, &[two], None).await.unwrap();
    assert!(merged.written.is_empty());
}

#[tokio::test]
async fn the_current_context_goes_to_the_first_file_that_exists() {
    let dir = Dir::new();
    dir.write("a", "");
    dir.write("b", "current-context: old\n");
    let sources = dir.sources(&["a", "b"]);
    let one = entry("one");
    let merged = merge(&sources, std::slice::from_ref(&one), Some(&one.name))
        .await
        .unwrap();
    assert_eq!(merged.current_context, Some(one.name));
    assert_eq!(dir.read("b"), "current-context: old\n");
}

#[tokio::test]
async fn a_file_that_does_not_parse_stops_everything() {
    let dir = Dir::new();
    dir.write("a", "apiVersion: v1\n");
    dir.write("b", "clusters:\n- name: [\n");
    let error = merge(&dir.sources(&["a", "b"]), &[entry("one")], None)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&*dir.file("b").to_string_lossy()) && error.contains("line"),
        "{error}"
    );
    assert_eq!(
        (dir.read("a").as_str(), dir.read("b").as_str()),
        ("apiVersion: v1\n", "clusters:\n- name: [\n")
    );
    assert_eq!(dir.names(), ["a", "b"]);
}

#[tokio::test]
async fn a_name_that_belongs_to_somebody_else_is_refused() {
    let dir = Dir::new();
    let mut mine = entry("one");
    mine.name = "prod".to_owned();
    let text = "contexts:\n- name: prod\n  context: {cluster: eks, user: me}\n";
    dir.write("a", text);
    let error = merge(&dir.sources(&["a"]), &[mine], None)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, MergeError::Foreign { kind: Kind::Context, name, .. } if name == "prod"),
        "{error}"
    );
    assert_eq!(dir.read("a"), text);
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_waited_for_but_not_forever() {
    let dir = Dir::new();
    dir.write("a.lock", "");
    let error = merge(&dir.sources(&["a"]), &[entry("one")], None)
        .await
        .unwrap_err();
    assert!(matches!(error, MergeError::Locked(_, 10)), "{error}");
    assert_eq!(dir.names(), ["a.lock"], "somebody else's lock stays");

    let sources = dir.sources(&["a"]);
    let entries = [entry("one")];
    let waiting = merge(&sources, &entries, None);
    let freeing = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        fs::remove_file(dir.file("a.lock")).unwrap();
    };
    let (merged, ()) = tokio::join!(waiting, freeing);
    assert_eq!(merged.unwrap().written, [dir.file("a")]);
}

#[tokio::test]
async fn what_is_no_file_is_neither_read_nor_replaced() {
    let dir = Dir::new();
    fs::create_dir(dir.file("a")).unwrap();
    let mut names = vec![dir.file("a")];
    if cfg!(unix) {
        names.push("/dev/null".into());
    }
    for name in names {
        let sources = Sources::find(Some(&name), None, None).unwrap();
        let error = merge(&sources, &[entry("one")], None).await.unwrap_err();
        assert!(matches!(error, MergeError::NotAFile(_)), "{error}");
    }
    assert_eq!(dir.names(), ["a"]);
}

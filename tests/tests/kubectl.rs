//! kubectl through the gateway, on a real cluster.

use tests::shared;

#[test]
fn get_lists_pods() {
    let shared = shared();
    let said = shared.kubectl("get pods -o name").ok();
    assert_eq!(said.trim(), "pod/box");
}

"""Uses a cluster as programs written with the Python client do: list, watch, exec.

usage: client.py NAMESPACE POD
"""

import sys
import threading

from kubernetes import client, config, watch
from kubernetes.stream import stream

PATIENCE = 40


def check(condition, what):
    if not condition:
        sys.exit(f"client.py: {what}")


def lists(api, namespace, pod):
    names = [item.metadata.name for item in api.list_namespaced_pod(namespace).items]
    check(pod in names, f"the list lacks the pod: {names}")
    pages, token = 0, None
    while True:
        page = api.list_namespace(limit=1, _continue=token)
        pages, token = pages + 1, page.metadata._continue
        if not token:
            break
    check(pages > 2, f"a list in chunks of one had {pages} pages")


def watches(api, namespace):
    def change():
        body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="python"), data={"a": "1"})
        api.create_namespaced_config_map(namespace, body)
        api.patch_namespaced_config_map("python", namespace, {"data": {"a": "2"}})
        api.delete_namespaced_config_map("python", namespace)

    writer = threading.Thread(target=change)
    seen = []
    for number, event in enumerate(
        watch.Watch().stream(api.list_namespaced_config_map, namespace, timeout_seconds=PATIENCE)
    ):
        if number == 0:
            # The first is one that is there already: from here on the watch is open.
            writer.start()
        if event["object"].metadata.name == "python":
            seen.append(event["type"])
        if seen and seen[-1] == "DELETED":
            break
    check(seen == ["ADDED", "MODIFIED", "DELETED"], f"the watch said {seen}")
    writer.join()
    # An end by the API server is an end, not an error.
    for _ in watch.Watch().stream(api.list_namespaced_config_map, namespace, timeout_seconds=1):
        pass


def follows_a_log(api, namespace, pod):
    api.read_namespaced_pod_log(pod, namespace, tail_lines=1)


def executes(api, namespace, pod):
    def run(script, **more):
        return stream(
            api.connect_get_namespaced_pod_exec,
            pod,
            namespace,
            command=["sh", "-c", script],
            stdout=True,
            stderr=True,
            tty=False,
            **{"stdin": False, **more},
        )

    said = run("echo to-out")
    check(said == "to-out\n", f"exec said {said!r}")
    session = run("read line; echo got $line; echo to-err >&2; exit 5", stdin=True, _preload_content=False)
    session.write_stdin("hello\n")
    session.run_forever(timeout=PATIENCE)
    out, err = session.read_stdout(timeout=1), session.read_stderr(timeout=1)
    check(out == "got hello\n", f"stdout was {out!r}")
    check(err == "to-err\n", f"stderr was {err!r}")
    check(session.returncode == 5, f"the exit code was {session.returncode}")


def main():
    namespace, pod = sys.argv[1:]
    config.load_kube_config()
    api = client.CoreV1Api()
    check(client.VersionApi().get_code().git_version.startswith("v1."), "no version")
    lists(api, namespace, pod)
    watches(api, namespace)
    follows_a_log(api, namespace, pod)
    executes(api, namespace, pod)
    print("passed")


main()

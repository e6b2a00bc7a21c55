// Command clients uses a cluster as programs written with client-go do.
//
//	clients --kubeconfig FILE --namespace NS --pod NAME TEST
//
// TEST is informers, exec-websocket, exec-spdy, exec-fallback, protobuf or cbor.
// It prints one line and exits with status 0 when all went as it should.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/features"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

type settings struct{ namespace, pod string }

var programs = map[string]func(context.Context, *rest.Config, settings) error{
	"informers":      runInformers,
	"exec-websocket": func(ctx context.Context, c *rest.Config, s settings) error { return runExec(ctx, c, s, webSocket) },
	"exec-spdy":      func(ctx context.Context, c *rest.Config, s settings) error { return runExec(ctx, c, s, spdy) },
	"exec-fallback":  func(ctx context.Context, c *rest.Config, s settings) error { return runExec(ctx, c, s, fallback) },
	"protobuf":       runProtobuf,
	"cbor":           runCBOR,
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig `FILE`")
	var s settings
	flag.StringVar(&s.namespace, "namespace", "default", "`NAMESPACE` to work in")
	flag.StringVar(&s.pod, "pod", "", "`POD` to exec into")
	flag.Parse()
	run, ok := programs[flag.Arg(0)]
	if !ok {
		fmt.Fprintf(os.Stderr, "there is no test %q\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err == nil {
		err = run(ctx, config, s)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", flag.Arg(0), err)
		os.Exit(1)
	}
	fmt.Println(flag.Arg(0), "passed")
}

// runInformers keeps caches of three kinds while objects come, change and go.
func runInformers(ctx context.Context, config *rest.Config, s settings) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(s.namespace))
	events := make(chan string, 1000)
	note := func(kind string, object any) {
		if unknown, gone := object.(cache.DeletedFinalStateUnknown); gone {
			object = unknown.Obj
		}
		if m, ok := object.(*corev1.ConfigMap); ok && strings.HasPrefix(m.Name, "informed-") {
			events <- kind + " " + m.Name
		}
	}
	maps := factory.Core().V1().ConfigMaps()
	_, err = maps.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { note("add", o) },
		UpdateFunc: func(_, o any) { note("update", o) },
		DeleteFunc: func(o any) { note("delete", o) },
	})
	if err != nil {
		return err
	}
	pods := factory.Core().V1().Pods().Lister()
	factory.Core().V1().Pods().Informer()
	factory.Apps().V1().Deployments().Informer()
	factory.Start(ctx.Done())
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return fmt.Errorf("the cache of %v did not fill", kind)
		}
	}
	if _, err := pods.Pods(s.namespace).Get(s.pod); err != nil {
		return fmt.Errorf("the cache lacks the pod: %w", err)
	}
	const count = 20
	api := client.CoreV1().ConfigMaps(s.namespace)
	for n := range count {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("informed-%d", n)}}
		if m, err = api.Create(ctx, m, metav1.CreateOptions{}); err != nil {
			return err
		}
		m.Data = map[string]string{"changed": "yes"}
		if _, err = api.Update(ctx, m, metav1.UpdateOptions{}); err != nil {
			return err
		}
		if err = api.Delete(ctx, m.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	seen := map[string]int{}
	for total := 0; total < 3*count; total++ {
		select {
		case event := <-events:
			seen[strings.Fields(event)[0]]++
		case <-ctx.Done():
			return fmt.Errorf("only %v of %d events each arrived", seen, count)
		}
	}
	if seen["add"] != count || seen["update"] != count || seen["delete"] != count {
		return fmt.Errorf("%v instead of %d each", seen, count)
	}
	return nil
}

type protocol int

const (
	webSocket protocol = iota
	spdy
	fallback
)

func runExec(ctx context.Context, config *rest.Config, s settings, which protocol) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	url := client.CoreV1().RESTClient().Post().Resource("pods").Namespace(s.namespace).Name(s.pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Command: []string{"sh", "-c", "cat; echo to-err >&2; exit 3"},
			Stdin:   true, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec).URL()
	overSPDY, err := remotecommand.NewSPDYExecutor(config, "POST", url)
	if err != nil {
		return err
	}
	overWebSocket, err := remotecommand.NewWebSocketExecutor(config, "GET", url.String())
	if err != nil {
		return err
	}
	executor := overWebSocket
	switch which {
	case spdy:
		executor = overSPDY
	case fallback:
		never := func(error) bool { return false }
		if executor, err = remotecommand.NewFallbackExecutor(overWebSocket, overSPDY, never); err != nil {
			return err
		}
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var stdout, stderr bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{
		Stdin: bytes.NewReader(sent), Stdout: &stdout, Stderr: &stderr,
	})
	var status exec.CodeExitError
	if !errors.As(err, &status) || status.Code != 3 {
		return fmt.Errorf("exit code 3 was lost: %v", err)
	}
	if !bytes.Equal(stdout.Bytes(), sent) {
		return fmt.Errorf("%d of %d bytes came back", stdout.Len(), len(sent))
	}
	if stderr.String() != "to-err\n" {
		return fmt.Errorf("stderr was %q", stderr.String())
	}
	return nil
}

// runProtobuf writes, lists and watches in protobuf.
func runProtobuf(ctx context.Context, config *rest.Config, s settings) error {
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	api := client.CoreV1().ConfigMaps(s.namespace)
	watch, err := api.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=protobuf"})
	if err != nil {
		return err
	}
	defer watch.Stop()
	want := strings.Repeat("x", 500_000)
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "protobuf"}, Data: map[string]string{"a": want}}
	if _, err := api.Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return err
	}
	defer api.Delete(context.WithoutCancel(ctx), "protobuf", metav1.DeleteOptions{}) //nolint:errcheck // goes with its namespace
	select {
	case event := <-watch.ResultChan():
		if m, ok := event.Object.(*corev1.ConfigMap); !ok || m.Data["a"] != want {
			return fmt.Errorf("the watch said %v %T", event.Type, event.Object)
		}
	case <-ctx.Done():
		return errors.New("the watch said nothing")
	}
	list, err := api.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, m := range list.Items {
		if m.Name == "protobuf" && m.Data["a"] == want {
			return nil
		}
	}
	return errors.New("the list lacks the object")
}

// runCBOR does the same in CBOR, which only the dynamic client speaks.
func runCBOR(ctx context.Context, config *rest.Config, s settings) error {
	gates, ok := features.FeatureGates().(interface {
		Set(features.Feature, bool) error
	})
	if !ok {
		return errors.New("client-go's feature gates can't be set")
	}
	for _, gate := range []features.Feature{features.ClientsAllowCBOR, features.ClientsPreferCBOR} {
		if err := gates.Set(gate, true); err != nil {
			return err
		}
	}
	spoken := &recorder{}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		spoken.next = next
		return spoken
	})
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	api := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace(s.namespace)
	watch, err := api.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=cbor"})
	if err != nil {
		return err
	}
	defer watch.Stop()
	want := strings.Repeat("x", 500_000)
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": "cbor"}, "data": map[string]any{"a": want},
	}}
	if _, err := api.Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return err
	}
	defer api.Delete(context.WithoutCancel(ctx), "cbor", metav1.DeleteOptions{}) //nolint:errcheck // goes with its namespace
	data := func(object any) string {
		u, ok := object.(*unstructured.Unstructured)
		if !ok {
			return fmt.Sprintf("%T", object)
		}
		a, _, _ := unstructured.NestedString(u.Object, "data", "a")
		return a
	}
	select {
	case event := <-watch.ResultChan():
		if data(event.Object) != want {
			return fmt.Errorf("the watch said %v %.80s", event.Type, data(event.Object))
		}
	case <-ctx.Done():
		return errors.New("the watch said nothing")
	}
	got, err := api.Get(ctx, "cbor", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if data(got) != want {
		return errors.New("what was stored differs")
	}
	return spoken.check()
}

// recorder notes in which form bodies travelled.
type recorder struct {
	next  http.RoundTripper
	lock  sync.Mutex
	lines []string
}

func (r *recorder) RoundTrip(request *http.Request) (*http.Response, error) {
	answer, err := r.next.RoundTrip(request)
	if err == nil {
		r.lock.Lock()
		defer r.lock.Unlock()
		r.lines = append(r.lines, fmt.Sprintf("%s sent %q got %q", request.Method,
			request.Header.Get("Content-Type"), answer.Header.Get("Content-Type")))
	}
	return answer, err
}

// check wants everything to have been CBOR, the created object included.
func (r *recorder) check() error {
	r.lock.Lock()
	defer r.lock.Unlock()
	all := strings.Join(r.lines, "; ")
	if !strings.Contains(all, `POST sent "application/cbor"`) || !strings.Contains(all, `got "application/cbor-seq"`) ||
		strings.Contains(all, "json") {
		return fmt.Errorf("not all was CBOR: %s", all)
	}
	return nil
}

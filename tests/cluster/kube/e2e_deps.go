//go:build e2edeps

package main

// Keeps what `go test -c k8s.io/kubernetes/test/e2e` needs in go.mod and go.sum.
import _ "k8s.io/kubernetes/test/e2e"

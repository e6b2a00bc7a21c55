// Command server is an aggregated API that says what reached it, for the tests
// of what passes through a gateway. HTTPS with a certificate made at its start.
//
//	GET  /apis/it.towline.test/v1             discovery
//	any  /apis/it.towline.test/v1/echo/…      method, URI, headers and body, as JSON
//	GET  /apis/it.towline.test/v1/trailers    a body with two trailers
//	GET  /apis/it.towline.test/v1/bytes/N     N bytes as fast as they are read
//	GET  /apis/it.towline.test/v1/redirect?to=URL
//	GET  /apis/it.towline.test/v1/abort       half a body, then a broken connection
//
// And port 7000 sends back what it gets.
//
// The same paths answer without the prefix, through a service's proxy.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const prefix = "/apis/it.towline.test/v1"

func main() {
	echo, err := net.Listen("tcp", ":7000")
	if err != nil {
		log.Fatal(err)
	}
	go sendBack(echo)
	certificate, err := selfSigned()
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Addr:              os.Args[1],
		Handler:           http.HandlerFunc(serve),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{certificate}},
		ReadHeaderTimeout: time.Minute,
	}
	log.Fatal(server.ListenAndServeTLS("", ""))
}

func sendBack(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer connection.Close()
			io.Copy(connection, connection)
		}()
	}
}

func serve(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, prefix)
	switch word, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/"); word {
	case "":
		answer(w, map[string]any{
			"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "it.towline.test/v1",
			"resources": []any{map[string]any{
				"name": "echo", "singularName": "", "namespaced": false, "kind": "Echo", "verbs": []string{"get"},
			}},
		})
	case "echo":
		digest := sha256.New()
		length, err := io.Copy(digest, r.Body)
		if err != nil {
			log.Print(err)
			return
		}
		answer(w, map[string]any{
			"method": r.Method, "uri": r.RequestURI, "protocol": r.Proto, "headers": r.Header,
			"length": length, "sha256": hex.EncodeToString(digest.Sum(nil)), "trailers": r.Trailer,
		})
	case "trailers":
		w.Header().Set("Trailer", "X-Sum, X-Count")
		io.WriteString(w, "a body, ")
		w.(http.Flusher).Flush()
		io.WriteString(w, "and then trailers")
		w.Header().Set("X-Sum", "one")
		w.Header().Set("X-Count", "2")
	case "bytes":
		n, err := strconv.ParseInt(rest, 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		chunk := make([]byte, 1<<16)
		rand.Read(chunk)
		for ; n > 0; n -= int64(len(chunk)) {
			if _, err := w.Write(chunk[:min(n, int64(len(chunk)))]); err != nil {
				return
			}
		}
	case "redirect":
		w.Header().Set("Location", r.URL.Query().Get("to"))
		w.WriteHeader(http.StatusFound)
	case "abort":
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, "half of it")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	default:
		http.NotFound(w, r)
	}
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(value)
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

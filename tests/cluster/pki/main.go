// Command pki writes a test cluster's keys, certificates and kubeconfigs.
//
// Files that are there already are left alone, so it can run before every
// start: a cluster keeps its identity when it is repaired.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const validity = 365 * 24 * time.Hour

func main() {
	dir := flag.String("dir", "", "directory to write into")
	name := flag.String("name", "", "name of the cluster, for the kubeconfigs")
	server := flag.String("server", "", "URL of the API server")
	node := flag.String("node", "", "name of the node")
	sans := flag.String("sans", "", "comma-separated addresses and names of the API server and the node")
	flag.Parse()
	if *dir == "" || *name == "" || *server == "" || *node == "" {
		fmt.Fprintln(os.Stderr, "pki: --dir, --name, --server and --node are needed")
		os.Exit(2)
	}
	p := &pki{dir: *dir, cluster: *name, server: *server}
	if err := p.write(*node, strings.Split(*sans, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "pki:", err)
		os.Exit(1)
	}
}

type pki struct {
	dir, cluster, server string
}

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

func (p *pki) write(node string, sans []string) error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	ca, err := p.authority("ca", "towline-test-ca")
	if err != nil {
		return err
	}
	frontProxy, err := p.authority("front-proxy-ca", "towline-test-front-proxy-ca")
	if err != nil {
		return err
	}

	server := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	apiNames := append([]string{
		"localhost", "127.0.0.1", "kubernetes", "kubernetes.default",
		"kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}, sans...)
	leaves := []struct {
		file    string
		signer  *authority
		subject pkix.Name
		usage   []x509.ExtKeyUsage
		names   []string
	}{
		{"apiserver", ca, pkix.Name{CommonName: "kube-apiserver"}, server, apiNames},
		{"kubelet", ca, pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}, server, append([]string{node, "localhost", "127.0.0.1"}, sans...)},
		{"apiserver-kubelet-client", ca, pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}, client, nil},
		{"front-proxy-client", frontProxy, pkix.Name{CommonName: "front-proxy-client"}, client, nil},
	}
	for _, leaf := range leaves {
		if err := p.leaf(leaf.file, leaf.signer, leaf.subject, leaf.usage, leaf.names); err != nil {
			return err
		}
	}
	if err := p.serviceAccountKey(); err != nil {
		return err
	}

	users := []struct {
		file    string
		subject pkix.Name
	}{
		{"admin", pkix.Name{CommonName: "kubernetes-admin", Organization: []string{"system:masters"}}},
		{"controller-manager", pkix.Name{CommonName: "system:kube-controller-manager"}},
		{"scheduler", pkix.Name{CommonName: "system:kube-scheduler"}},
		{"kube-proxy", pkix.Name{CommonName: "system:kube-proxy"}},
		{"node", pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}},
	}
	for _, user := range users {
		if err := p.leaf(user.file, ca, user.subject, client, nil); err != nil {
			return err
		}
		if err := p.kubeconfig(user.file, ca); err != nil {
			return err
		}
	}
	return nil
}

func (p *pki) path(file string) string { return filepath.Join(p.dir, file) }

func (p *pki) exists(files ...string) bool {
	for _, file := range files {
		if _, err := os.Stat(p.path(file)); errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

func (p *pki) authority(file, commonName string) (*authority, error) {
	if p.exists(file+".crt", file+".key") {
		return p.readAuthority(file)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificate(pkix.Name{CommonName: commonName})
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if err := p.writePair(file, der, key); err != nil {
		return nil, err
	}
	return p.readAuthority(file)
}

func (p *pki) readAuthority(file string) (*authority, error) {
	certPEM, err := os.ReadFile(p.path(file + ".crt"))
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(p.path(file + ".key"))
	if err != nil {
		return nil, err
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("%s.crt or %s.key in %s is not PEM", file, file, p.dir)
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key.(crypto.Signer), pem: certPEM}, nil
}

func (p *pki) leaf(file string, signer *authority, subject pkix.Name, usage []x509.ExtKeyUsage, names []string) error {
	if p.exists(file+".crt", file+".key") {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := certificate(subject)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = usage
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if name != "" {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.cert, key.Public(), signer.key)
	if err != nil {
		return err
	}
	return p.writePair(file, der, key)
}

// serviceAccountKey makes the pair that signs service account tokens. It is RSA
// because that is what clusters in the field have.
func (p *pki) serviceAccountKey() error {
	if p.exists("sa.key", "sa.pub") {
		return nil
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := p.writeKey("sa.key", key); err != nil {
		return err
	}
	return p.writePEM("sa.pub", "PUBLIC KEY", public, 0o644)
}

func (p *pki) kubeconfig(file string, ca *authority) error {
	target := p.path(file + ".kubeconfig")
	cert, err := os.ReadFile(p.path(file + ".crt"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(p.path(file + ".key"))
	if err != nil {
		return err
	}
	encode := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: %[1]s
clusters:
- name: %[1]s
  cluster:
    server: %[2]s
    certificate-authority-data: %[3]s
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[4]s}
users:
- name: %[4]s
  user:
    client-certificate-data: %[5]s
    client-key-data: %[6]s
`, p.cluster, p.server, encode(ca.pem), file, encode(cert), encode(key))
	return os.WriteFile(target, []byte(text), 0o600)
}

func certificate(subject pkix.Name) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // the system has no randomness: nothing can be done
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(validity),
	}
}

func (p *pki) writePair(file string, der []byte, key crypto.Signer) error {
	if err := p.writeKey(file+".key", key); err != nil {
		return err
	}
	return p.writePEM(file+".crt", "CERTIFICATE", der, 0o644)
}

func (p *pki) writeKey(file string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return p.writePEM(file, "PRIVATE KEY", der, 0o600)
}

func (p *pki) writePEM(file, kind string, der []byte, mode os.FileMode) error {
	return os.WriteFile(p.path(file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

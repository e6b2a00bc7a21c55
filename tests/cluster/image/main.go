// Command mkimage makes a container image out of files, without a registry or
// a container engine: a docker-archive tar of one layer. The same input gives
// the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"time"
)

const usage = `Usage: mkimage --name NAME:TAG --output FILE.tar [options]

Makes an image (docker-archive tar) that 'ctr images import' and 'docker load' take.

  --name NAME:TAG          name of the image; may be given more than once
  --output FILE            tar to write
  --entrypoint ARG         entrypoint; once per argument
  --cmd ARG                default arguments; once per argument
  --env KEY=VALUE          environment variable
  --user UID[:GID]         user that the entrypoint runs as (default root)
  --workdir DIR            working directory
  --file SRC=DEST[:MODE]   copy a file; a directory is copied with all in it
  --dir DEST[:MODE]        an empty directory, e.g. /tmp:1777
  --symlink DEST=TARGET    a symbolic link DEST that points at TARGET
  --label KEY=VALUE        label

Example:
  mkimage --name example.test/agent:1 --file target/agent=/agent:0755 \
      --entrypoint /agent --user 65532 --output agent.tar
`

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

type entry struct {
	header tar.Header
	source string
}

func main() {
	var names, entrypoint, cmd, env, files, dirs, links, labels list
	flags := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flags.Var(&names, "name", "")
	flags.Var(&entrypoint, "entrypoint", "")
	flags.Var(&cmd, "cmd", "")
	flags.Var(&env, "env", "")
	flags.Var(&files, "file", "")
	flags.Var(&dirs, "dir", "")
	flags.Var(&links, "symlink", "")
	flags.Var(&labels, "label", "")
	user := flags.String("user", "", "")
	workdir := flags.String("workdir", "", "")
	output := flags.String("output", "", "")
	if err := flags.Parse(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		os.Exit(2)
	}
	if len(names) == 0 || *output == "" || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "mkimage: --name and --output are needed, and nothing but options; try: mkimage --help")
		os.Exit(2)
	}
	if err := run(names, *output, files, dirs, links, config{
		Entrypoint: entrypoint, Cmd: cmd, Env: env, User: *user, WorkingDir: *workdir, Labels: pairs(labels),
	}); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

type config struct {
	Entrypoint []string          `json:",omitempty"`
	Cmd        []string          `json:",omitempty"`
	Env        []string          `json:",omitempty"`
	User       string            `json:",omitempty"`
	WorkingDir string            `json:",omitempty"`
	Labels     map[string]string `json:",omitempty"`
}

func run(names []string, output string, files, dirs, links list, cfg config) error {
	for i, name := range names {
		if !strings.Contains(path.Base(name), ":") {
			names[i] = name + ":latest"
		}
	}
	entries, err := collect(files, dirs, links)
	if err != nil {
		return err
	}
	hasPath := false
	for _, e := range cfg.Env {
		hasPath = hasPath || strings.HasPrefix(e, "PATH=")
	}
	if !hasPath {
		cfg.Env = append(cfg.Env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}

	layer, err := os.CreateTemp(filepath.Dir(output), ".mkimage-*")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	digest := sha256.New()
	if err := writeLayer(io.MultiWriter(layer, digest), entries); err != nil {
		return err
	}
	size, err := layer.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	layerID := hex.EncodeToString(digest.Sum(nil))

	image, err := json.Marshal(map[string]any{
		"created":      time.Unix(0, 0).UTC(),
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       cfg,
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + layerID}},
		"history":      []any{map[string]any{"created": time.Unix(0, 0).UTC(), "created_by": "mkimage"}},
	})
	if err != nil {
		return err
	}
	imageSum := sha256.Sum256(image)
	imageID := hex.EncodeToString(imageSum[:])
	manifest, err := json.Marshal([]any{map[string]any{
		"Config":   imageID + ".json",
		"RepoTags": names,
		"Layers":   []string{layerID + "/layer.tar"},
	}})
	if err != nil {
		return err
	}

	archive, err := os.CreateTemp(filepath.Dir(output), ".mkimage-*")
	if err != nil {
		return err
	}
	defer os.Remove(archive.Name())
	defer archive.Close()
	w := tar.NewWriter(archive)
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	parts := []struct {
		name string
		size int64
		body io.Reader
	}{
		{"manifest.json", int64(len(manifest)), bytes.NewReader(manifest)},
		{imageID + ".json", int64(len(image)), bytes.NewReader(image)},
		{layerID + "/layer.tar", size, layer},
	}
	for _, part := range parts {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: part.name, Size: part.size, Mode: 0o644, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
		if _, err := io.Copy(w, part.body); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := archive.Chmod(0o644); err != nil {
		return err
	}
	return os.Rename(archive.Name(), output)
}

func collect(files, dirs, links list) ([]entry, error) {
	entries := map[string]entry{}
	add := func(name string, e entry) {
		e.header.Name = strings.TrimPrefix(path.Clean("/"+name), "/")
		e.header.ModTime = time.Unix(0, 0)
		if e.header.Typeflag == tar.TypeDir {
			e.header.Name += "/"
		}
		if e.header.Name != "/" {
			entries[strings.TrimSuffix(e.header.Name, "/")] = e
		}
	}
	for _, spec := range files {
		source, dest, ok := strings.Cut(spec, "=")
		if !ok || source == "" || !strings.HasPrefix(dest, "/") {
			return nil, fmt.Errorf("--file %q: write it as SOURCE=/DESTINATION[:MODE]", spec)
		}
		dest, forced, err := splitMode(dest)
		if err != nil {
			return nil, fmt.Errorf("--file %q: %w", spec, err)
		}
		err = filepath.WalkDir(source, func(at string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			below, err := filepath.Rel(source, at)
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if at == source { // a link given on the command line is followed
				if info, err = os.Stat(at); err != nil {
					return err
				}
			}
			e := entry{source: at, header: tar.Header{Typeflag: tar.TypeReg, Size: info.Size(), Mode: int64(info.Mode().Perm())}}
			switch {
			case info.IsDir():
				e.header.Typeflag, e.header.Size = tar.TypeDir, 0
			case info.Mode()&fs.ModeSymlink != 0:
				target, err := os.Readlink(at)
				if err != nil {
					return err
				}
				e.header.Typeflag, e.header.Size, e.header.Linkname = tar.TypeSymlink, 0, target
			case !info.Mode().IsRegular():
				return fmt.Errorf("%s is neither a file, a directory nor a symbolic link", at)
			case forced != 0:
				e.header.Mode = forced
			}
			add(path.Join(dest, filepath.ToSlash(below)), e)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	for _, spec := range dirs {
		dest, mode, err := splitMode(spec)
		if err != nil {
			return nil, fmt.Errorf("--dir %q: %w", spec, err)
		}
		if mode == 0 {
			mode = 0o755
		}
		add(dest, entry{header: tar.Header{Typeflag: tar.TypeDir, Mode: mode}})
	}
	for _, spec := range links {
		dest, target, ok := strings.Cut(spec, "=")
		if !ok || target == "" {
			return nil, fmt.Errorf("--symlink %q: write it as /LINK=TARGET", spec)
		}
		add(dest, entry{header: tar.Header{Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}})
	}
	names := make([]string, 0, len(entries))
	for name := range entries {
		names = append(names, name)
	}
	for _, name := range names {
		for parent := path.Dir(name); parent != "."; parent = path.Dir(parent) {
			if _, ok := entries[parent]; !ok {
				add(parent, entry{header: tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}})
			}
		}
	}
	sorted := make([]entry, 0, len(entries))
	for _, e := range entries {
		sorted = append(sorted, e)
	}
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].header.Name < sorted[j].header.Name })
	return sorted, nil
}

// splitMode takes an octal mode off the end of DEST:MODE; 0 when there is none.
func splitMode(spec string) (string, int64, error) {
	at := strings.LastIndex(spec, ":")
	if at < 0 {
		return spec, 0, nil
	}
	mode, err := strconv.ParseInt(spec[at+1:], 8, 32)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not an octal mode", spec[at+1:])
	}
	return spec[:at], mode, nil
}

func writeLayer(out io.Writer, entries []entry) error {
	w := tar.NewWriter(out)
	for _, e := range entries {
		header := e.header
		if err := w.WriteHeader(&header); err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		file, err := os.Open(e.source)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, file)
		file.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", e.source, err)
		}
	}
	return w.Close()
}

func pairs(labels []string) map[string]string {
	m := map[string]string{}
	for _, label := range labels {
		key, value, _ := strings.Cut(label, "=")
		m[key] = value
	}
	return m
}

package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/blob"
	"github.com/nearkey/nearkey/internal/s3test"
	"github.com/nearkey/nearkey/kv"
)

func optionsOf(s *s3test.Server) Options {
	return Options{Endpoint: s.Endpoint, Region: s.Region, Bucket: s.Bucket, AccessKeyID: s.AccessKeyID, SecretKeyFile: s.SecretKeyFile, PathStyle: true}
}

func mustOpen(t *testing.T, opts Options) *Bucket {
	t.Helper()
	b, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func mustPut(t *testing.T, b *Bucket, name string, data []byte) {
	t.Helper()
	if err := b.Put(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

func mustHave(t *testing.T, b *Bucket, name string, want []byte) {
	t.Helper()
	got, err := b.Get(t.Context(), name)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("get %q: %d bytes, %v; want %d bytes", name, len(got), err, len(want))
	}
}

// noise is n bytes that do not compress.
func noise(n int) []byte {
	data := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(data) // it always reads all
	return data
}

func TestBucket(t *testing.T) {
	server := s3test.Start(t)
	for _, prefix := range []string{"", "some/prefix"} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			opts := optionsOf(server)
			opts.Prefix = prefix
			b := mustOpen(t, opts)
			if _, err := b.Get(t.Context(), "absent"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("get of what is not there: %v", err)
			}
			for _, n := range []int{0, 1, 4096, 2<<20 - 1, 2<<20 + 1, kv.MaxValueBytes} {
				name := fmt.Sprint("v1/size/", n)
				data := noise(n)
				for range 2 {
					mustPut(t, b, name, data)
					mustHave(t, b, name, data)
				}
			}
			if err := b.Delete(t.Context(), []string{"v1/size/0", "v1/size/never", "v1/size/4096"}); err != nil {
				t.Errorf("delete: %v", err)
			}
			infos, more, err := b.List(t.Context(), "v1/size/", "", 0)
			if err != nil || more || len(infos) != 4 || infos[0].Name != "v1/size/1" || infos[0].Size != 1 || time.Since(infos[0].Modified).Abs() > time.Hour {
				t.Errorf("list: %+v, more %v, %v", infos, more, err)
			}
			if names := server.Objects(); len(names) == 0 || !strings.HasPrefix(names[0], prefix) {
				t.Errorf("objects are %v", names)
			}
			server.Wipe()
		})
	}
}

// TestListLikeMemory compares pages with those of the bucket in memory.
func TestListLikeMemory(t *testing.T) {
	server := s3test.Start(t)
	opts := optionsOf(server)
	opts.Prefix = "p"
	b, memory := mustOpen(t, opts), &blob.Memory{}
	const n = 1003
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := worker; i < n; i += 8 {
				name := fmt.Sprintf("v1/%02x/%04x", i%16, i*40503%65536)
				if err := errors.Join(b.Put(t.Context(), name, []byte(name)), memory.Put(t.Context(), name, []byte(name))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, c := range []struct {
		prefix, after string
		limit         int
	}{{"", "", 0}, {"v1/", "", 1}, {"v1/", "", 1000}, {"v1/", "v1/07/", 100}, {"v1/0f/", "", 7}, {"v1/0f/", "v1/0f/8", 1000}, {"v1/0", "v1/030", 3}, {"v2/", "", 5}, {"v1/", "v1/0f/ffff", 5}, {"v1/", "", 1001}} {
		for after, page := c.after, 0; page < 5; page++ {
			got, gotMore, err := b.List(t.Context(), c.prefix, after, c.limit)
			want, wantMore, _ := memory.List(t.Context(), c.prefix, after, c.limit)
			if err != nil || gotMore != wantMore || !slices.EqualFunc(got, want, func(a, b blob.Info) bool { return a.Name == b.Name && a.Size == b.Size }) {
				t.Fatalf("list %+v after %q: %d blobs, more %v, %v; want %d, more %v", c, after, len(got), gotMore, err, len(want), wantMore)
			}
			if !gotMore {
				break
			}
			after = got[len(got)-1].Name
		}
	}
	all, _, err := b.List(t.Context(), "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, info := range all {
		names = append(names, info.Name)
	}
	if err := b.Delete(t.Context(), names); len(names) != blob.MaxList || err != nil {
		t.Errorf("delete of %d at once: %v", len(names), err)
	}
	if err := b.Delete(t.Context(), append(names, "one more")); err == nil {
		t.Errorf("%d were deleted at once, at most %d can be", len(names)+1, blob.MaxList)
	}
	if err := b.Delete(t.Context(), nil); err != nil {
		t.Errorf("delete of none: %v", err)
	}
	if left, _, err := b.List(t.Context(), "", "", 0); err != nil || len(left) != n-blob.MaxList {
		t.Errorf("%d are left, %v", len(left), err)
	}
}

func TestReadLimit(t *testing.T) {
	opts := optionsOf(s3test.Start(t))
	opts.MaxBytes = 1000
	b := mustOpen(t, opts)
	mustPut(t, b, "at", noise(1000))
	mustPut(t, b, "past", noise(1001))
	mustHave(t, b, "at", noise(1000))
	if _, err := b.Get(t.Context(), "past"); !errors.Is(err, kv.ErrDamaged) {
		t.Errorf("get of a byte too many: %v, want ErrDamaged", err)
	}
}

func TestVirtualHostStyleAndOwnCertificates(t *testing.T) {
	cert, key := certificate(t, "s3.nearkey.test", "*.s3.nearkey.test")
	server := s3test.StartConfig(t, s3test.Config{VirtualDomain: "s3.nearkey.test", CertFile: cert, KeyFile: key})
	_, port, err := net.SplitHostPort(server.Address)
	if err != nil {
		t.Fatal(err)
	}
	opts := optionsOf(server)
	opts.Endpoint, opts.PathStyle = "https://s3.nearkey.test:"+port, false
	var hosts sync.Map
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		hosts.Store(address, true)
		return (&net.Dialer{}).DialContext(ctx, network, server.Address)
	}
	b, err := open(opts, dial)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "k", []byte("v")); !errors.Is(err, kv.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("put with the system's authorities: %v", err)
	}
	opts.CAFile = cert
	if b, err = open(opts, dial); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	mustPut(t, b, "k", []byte("v"))
	mustHave(t, b, "k", []byte("v"))
	if infos, _, err := b.List(t.Context(), "", "", 0); err != nil || len(infos) != 1 {
		t.Errorf("list: %v, %v", infos, err)
	}
	if err := b.Delete(t.Context(), []string{"k"}); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, ok := hosts.Load(server.Bucket + ".s3.nearkey.test:" + port); !ok {
		t.Error("the bucket is not in the host's name")
	}
}

func TestWrongKeysAndBuckets(t *testing.T) {
	server := s3test.Start(t)
	mustPut(t, mustOpen(t, optionsOf(server)), "k", []byte("v"))
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("wrongsecretwrongsecret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"secret":     func(o *Options) { o.SecretKeyFile = secret },
		"access key": func(o *Options) { o.AccessKeyID = "nobody" },
		"bucket":     func(o *Options) { o.Bucket = "no-such-bucket" },
		"region":     func(o *Options) { o.Region = "eu-north-1" },
	} {
		t.Run(name, func(t *testing.T) {
			opts := optionsOf(server)
			change(&opts)
			var log bytes.Buffer
			opts.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			b := mustOpen(t, opts)
			_, getErr := b.Get(t.Context(), "k")
			_, _, listErr := b.List(t.Context(), "", "", 0)
			for what, err := range map[string]error{"put": b.Put(t.Context(), "k", []byte("w")), "get": getErr, "list": listErr, "delete": b.Delete(t.Context(), []string{"k"})} {
				if !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s with a wrong %s: %v, want ErrUnavailable", what, name, err)
				}
				if err != nil && strings.Contains(err.Error()+log.String(), "wrongsecret") {
					t.Errorf("%s with a wrong %s tells the secret", what, name)
				}
			}
		})
	}
	mustHave(t, mustOpen(t, optionsOf(server)), "k", []byte("v"))
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := Options{Bucket: "b", AccessKeyID: "a", SecretKeyFile: file("good", " secret\n")}
	for name, change := range map[string]func(*Options){
		"no bucket":             func(o *Options) { o.Bucket = "" },
		"slash before a prefix": func(o *Options) { o.Prefix = "/p" },
		"no scheme":             func(o *Options) { o.Endpoint = "localhost:9000" },
		"another scheme":        func(o *Options) { o.Endpoint = "ftp://h" },
		"no host":               func(o *Options) { o.Endpoint = "http://" },
		"a password":            func(o *Options) { o.Endpoint = "http://u:hunter2@h" },
		"no URL":                func(o *Options) { o.Endpoint = "http://u:hunter2@h:port" },
		"a query":               func(o *Options) { o.Endpoint = "http://h/?x" },
		"no secret":             func(o *Options) { o.SecretKeyFile = "" },
		"no access key":         func(o *Options) { o.AccessKeyID = "" },
		"no file":               func(o *Options) { o.SecretKeyFile = filepath.Join(dir, "none") },
		"empty file":            func(o *Options) { o.SecretKeyFile = file("empty", "\n") },
		"two words":             func(o *Options) { o.SecretKeyFile = file("two", "hunter2 hunter2") },
		"no authority":          func(o *Options) { o.CAFile = filepath.Join(dir, "none") },
		"empty authority":       func(o *Options) { o.CAFile = file("ca", "none") },
	} {
		opts := good
		change(&opts)
		if _, err := Open(opts); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(good); err != nil {
		t.Error(err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	fromEnvironment := Options{Bucket: "b"}
	if _, err := Open(fromEnvironment); err == nil {
		t.Error("opened without credentials")
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	if _, err := Open(fromEnvironment); err != nil {
		t.Error(err)
	}
}

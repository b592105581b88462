package examples_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

const configBytes = 10 << 20 // of a configuration

// config is a configuration that does not compress.
func config(seed uint64) string {
	noise := make([]byte, configBytes/2-10)
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	return fmt.Sprintf(`{"config": "%s"}`, hex.EncodeToString(noise))
}

// TestRemoteConfig: apps get what was published, whole, and only when it is new.
func TestRemoteConfig(t *testing.T) {
	t.Parallel()
	p := deploy(t, "remote-config")
	p.env = append(p.env, "PATH="+filepath.Dir(shared.binary)+":"+os.Getenv("PATH"))
	apps := worker("remote-config")
	first, second := config(1), config(2)
	publish := func(app, content string) {
		t.Helper()
		p.command(t, "sh", "publish.sh", app, p.file(t, "config.json", content))
	}
	has := func(app, content string) {
		t.Helper()
		nearkeytest.Eventually(t, app+" has a configuration", func() error {
			return statusOf(apps.get(t, "/"+app, "If-None-Match: "+etagOf(content)), http.StatusNotModified)
		})
		a := apps.get(t, "/"+app).want(t, http.StatusOK, "").wantHeader(t, "ETag", etagOf(content)).
			wantHeader(t, "Content-Type", "application/json").wantHeader(t, "Content-Length", strconv.Itoa(len(content)))
		if sha256.Sum256(a.body) != sha256.Sum256([]byte(content)) {
			t.Fatalf("%s has another configuration of %d bytes", app, len(a.body))
		}
	}
	apps.get(t, "/shop").want(t, http.StatusNotFound, "no configuration") // which is cached
	publish("shop", first)
	has("shop", first)
	apps.get(t, "/game").want(t, http.StatusNotFound, "no configuration")
	publish("game", first) // the same payload
	has("game", first)
	publish("shop", second)
	has("shop", second)
	a := apps.get(t, "/shop", "If-None-Match: "+etagOf(first)).want(t, http.StatusOK, "")
	if len(a.body) != len(second) {
		t.Errorf("an app with an old configuration got %d bytes", len(a.body))
	}
	has("game", first)
	publish("shop", first) // back again
	has("shop", first)
	head := apps.do(t, http.MethodHead, "/shop", "").want(t, http.StatusOK, "").wantHeader(t, "ETag", etagOf(first))
	head.wantHeader(t, "Content-Length", strconv.Itoa(len(first)))
	if keys := namespaceOf(t, "remote-config-configs").keys(t, "payload/"); len(keys) != 2 {
		t.Errorf("%d payloads are kept, want 2", len(keys))
	}

	// What cannot be read is not published.
	if out, err := p.try(t.Context(), "sh", "publish.sh", "shop", p.file(t, "config.json", "{")); err == nil {
		t.Errorf("it was published: %s", out)
	}
	has("shop", first)
	// A payload without a pointer is nobody's. A pointer without a payload is not for long.
	third := `{"small": true}`
	pointer := fmt.Sprintf(`{"hash": %s, "bytes": %d}`, etagOf(third), len(third))
	p.nearkey(t, "kv", "put", "remote-config-configs", "current/shop", pointer)
	nearkeytest.Eventually(t, "the pointer is there", func() error { return statusOf(apps.get(t, "/shop"), http.StatusServiceUnavailable) })
	apps.get(t, "/shop").want(t, http.StatusServiceUnavailable, "on its way").wantHeader(t, "Cache-Control", "no-store").wantHeader(t, "Retry-After", "1")
	publish("game", third)
	has("game", third)
	has("shop", third)

	for _, path := range []string{"/", "/a/b", "/" + strings.Repeat("a", 65), "/payload%2F" + etagOf(first)} {
		apps.get(t, path).want(t, http.StatusNotFound, "")
	}
	apps.do(t, http.MethodPut, "/shop", "{}").want(t, http.StatusMethodNotAllowed, "")
}

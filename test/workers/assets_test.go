package workers

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
	"syscall"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// upload sends a form of parts, which are files if they have a type.
func (w *world) upload(method, path string, parts ...[3]string) (status int, result json.RawMessage) {
	w.t.Helper()
	body := &bytes.Buffer{}
	form := multipart.NewWriter(body)
	for _, p := range parts {
		h := textproto.MIMEHeader{"Content-Disposition": {`form-data; name="` + p[0] + `"`}}
		if p[1] != "" {
			h.Set("Content-Disposition", `form-data; name="`+p[0]+`"; filename="`+p[0]+`"`)
			h.Set("Content-Type", p[1])
		}
		to, err := form.CreatePart(h)
		if err == nil {
			_, err = io.WriteString(to, p[2])
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	if err := form.Close(); err != nil {
		w.t.Fatal(err)
	}
	status, e := w.call(method, path, form.FormDataContentType(), body.Bytes())
	if !e.Success {
		w.t.Fatalf("%s %s: %d %+v", method, path, status, e.Errors)
	}
	return status, e.Result
}

// deployFiles deploys a Worker of static files alone, given by their paths.
func (w *world) deployFiles(name string, files map[string]string) {
	w.t.Helper()
	type file struct {
		Hash string `json:"hash"`
		Size int    `json:"size"`
	}
	list, parts := map[string]file{}, map[string][3]string{}
	for path, content := range files {
		sum := sha256.Sum256([]byte(content))
		hash := hex.EncodeToString(sum[:16])
		list[path], parts[hash] = file{hash, len(content)}, [3]string{hash, "text/x-file", content}
	}
	var session struct {
		JWT     string
		Buckets [][]string
	}
	w.must(http.MethodPost, "/workers/scripts/"+name+"/assets-upload-session", map[string]any{"manifest": list}, &session)
	sender := *w
	sender.Server = &process.Server{URL: w.URL, AccountID: w.AccountID, Token: session.JWT}
	for _, bucket := range session.Buckets {
		var send [][3]string
		for _, hash := range bucket {
			send = append(send, parts[hash])
		}
		status, result := sender.upload(http.MethodPost, "/workers/assets/upload", send...)
		if status == http.StatusCreated {
			if err := json.Unmarshal(result, &session); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	w.upload(http.MethodPut, "/workers/scripts/"+name, [3]string{"metadata", "", `{"compatibility_date":"2026-01-01","assets":{"jwt":"` + session.JWT + `"}}`})
	w.must(http.MethodPost, "/workers/scripts/"+name+"/subdomain", map[string]bool{"enabled": true}, nil)
}

// TestFleetAssets: static files that are deployed through one edge are at all of
// them, and go on without the centre once they are near.
func TestFleetAssets(t *testing.T) {
	edges, central := startFleet(t, 2)
	large := strings.Repeat("large ", 100_000)
	edges[0].deployFiles("files", map[string]string{"/index.html": "home", "/large": large})
	served := func(w *world, path, body string) {
		t.Helper()
		nearkeytest.Eventually(t, "the file is served", func() error {
			a, err := do(t.Context(), http.MethodGet, w.workers, "files."+w.domain, path, "")
			if err != nil || a.status != http.StatusOK || a.body != body {
				return fmt.Errorf("%w, %d %.100q", err, a.status, a.body)
			}
			return nil
		})
	}
	for _, w := range edges {
		served(w, "/", "home")
		served(w, "/large", large)
	}
	central(syscall.SIGSTOP)
	for _, w := range edges {
		w.want("files", "/", "home")
		w.want("files", "/large", large)
	}
	central(syscall.SIGCONT)
	edges[1].deployFiles("files", map[string]string{"/index.html": "newer", "/large": large})
	for _, w := range edges {
		served(w, "/", "newer")
	}
}

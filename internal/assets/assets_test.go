package assets

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
)

// sited are options as testdata has them.
type sited struct {
	HTML, NotFound, Redirects, Headers string
	Worker                             bool
	Flags                              []string
	First                              json.RawMessage `json:"run_worker_first"`
}

func (s *sited) options(t *testing.T) Options {
	o := Options{HTML: s.HTML, NotFound: s.NotFound, Worker: s.Worker, Redirects: s.Redirects, Headers: s.Headers, Date: "2026-01-01", Flags: s.Flags}
	if len(s.First) > 0 && json.Unmarshal(s.First, &o.WorkerFirst) != nil {
		if err := json.Unmarshal(s.First, &o.WorkerRules); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// answered is what Miniflare answers. The content of each file is its path.
type answered struct {
	Path, Method string
	Headers      map[string]string
	Status       int
	Body         string
	ETag         bool

	Location string
	Cache    string `json:"cache-control"`
	Type     string `json:"content-type"`
	All      string `json:"x-all"`
	One      string `json:"x-one"`
	Name     string `json:"x-name"`
	Sub      string `json:"x-sub"`
}

// ask has a site answer as it is done for clients.
func ask(s *Site, want *answered) answered {
	r := Request{Method: want.Method, Host: "127.0.0.1", Header: http.Header{}}
	for name, value := range want.Headers {
		if name == "host" {
			r.Host = value
		}
		r.Header.Set(name, value)
	}
	r.Path, r.Query, _ = strings.Cut(want.Path, "?")
	got := answered{Path: want.Path, Method: want.Method, Headers: want.Headers}
	if s.RunsWorker(&r) {
		got.Status, got.Body = http.StatusOK, "worker"
		return got
	}
	a, h := s.Answer(&r), http.Header{}
	a.Head(h, want.Type)
	if a.HasBody() && r.Method != http.MethodHead {
		got.Body = a.File.Hash
	}
	got.Status, got.ETag, got.Location, got.Cache = a.Status, h.Get("ETag") != "", h.Get("Location"), h.Get("Cache-Control")
	got.Type, got.All, got.One, got.Name, got.Sub = h.Get("Content-Type"), h.Get("X-All"), h.Get("X-One"), h.Get("X-Name"), h.Get("X-Sub")
	return got
}

// TestAsMiniflare: a site answers as Miniflare does, which runs Cloudflare's own
// Workers for assets.
func TestAsMiniflare(t *testing.T) {
	text, err := os.ReadFile("testdata/answers.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Pages []string
		Sites []struct {
			Options sited
			Answers []answered
		}
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	files := map[string]File{}
	for _, page := range all.Pages {
		files[page] = File{Hash: page, Size: int64(len(page))}
	}
	count := 0
	for _, site := range all.Sites {
		s := New(site.Options.options(t), func(path string) (File, bool) { f, ok := files[path]; return f, ok })
		for i := range site.Answers {
			want := &site.Answers[i]
			got := ask(s, want)
			count++
			g, _ := json.Marshal(got)
			if w, _ := json.Marshal(want); string(g) != string(w) {
				t.Errorf("%s %s %s first %s:\n got %s\nwant %s", site.Options.HTML, site.Options.NotFound, site.Options.Flags, site.Options.First, g, w)
			}
		}
	}
	if count < 1000 {
		t.Errorf("%d answers", count)
	}
}

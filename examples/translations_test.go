package examples_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// TestTranslations: readers get pages in their language as far as there is one, and
// everything else as the server sent it.
func TestTranslations(t *testing.T) {
	t.Parallel()
	const (
		original = `<!doctype html><html lang="en"><head><title data-text="title">News</title></head><body>` +
			`<h1 class="big" data-text="title">News <em>today</em></h1><p data-text="street">Street</p><p data-text="constructor">Built</p>` +
			`<input data-text-placeholder="search" placeholder="Search"><a data-text-href="search" href="/a">a</a></body></html>`
		data = `{"html": "<p data-text=\"title\">News</p>"}`
	)
	playOrigin(t, "news.example", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"original"`)
		if r.Header.Get("If-None-Match") != "" || r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("Vary", "Cookie")
		switch r.URL.Path {
		case "/data":
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, data)
		case "/":
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = io.WriteString(w, original)
		default:
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `<html><p data-text="street">Street</p></html>`)
		}
	}))
	p := deploy(t, "translations")
	news := site("http://news.example")
	set := func(language, texts string) { p.nearkey(t, "kv", "put", "translations-texts", language, texts) }
	speak := func(accepted string) answer { return news.get(t, "/", "Accept-Language: "+accepted) }

	// Nobody has translated anything, and that is cached.
	for _, accepted := range []string{"", "de, en;q=0.5", "*", "nonsense;;, ,de;q=x"} {
		if a := speak(accepted).want(t, http.StatusOK, original).wantHeader(t, "Content-Language", "en"); string(a.body) != original {
			t.Fatalf("the page for %q is %s", accepted, a.body)
		}
	}
	set("de", `{"title": "Neu <b>&</b> \"gut\"", "street": "Straße", "search": "Suche \"hier\""}`)
	set("de-ch", `{"street": "Strasse"}`)
	set("fr", `{"title": "Nouvelles"}`)
	in := func(language, accepted string, has ...string) {
		t.Helper()
		nearkeytest.Eventually(t, fmt.Sprintf("%q is answered in %s", accepted, language), func() error {
			a := speak(accepted)
			if got := a.header.Get("Content-Language"); a.status != http.StatusOK || got != language {
				return fmt.Errorf("status %d, language %q", a.status, got)
			}
			for _, text := range append(has, `<html lang="`+language+`">`) {
				if !strings.Contains(string(a.body), text) {
					return fmt.Errorf("the page has no %s:\n%s", text, a.body)
				}
			}
			return nil
		})
	}
	const title = `<h1 class="big" data-text="title">Neu &lt;b&gt;&amp;&lt;/b&gt; "gut"</h1>` // no markup
	in("de", "de", title, `<title data-text="title">Neu`, ">Straße<", ">Built<", `placeholder="Suche &quot;hier&quot;"`, `href="/a"`)
	in("de-ch", "de-CH, de;q=0.9, en;q=0.1", title, ">Strasse<")
	in("de", "de-AT;q=0.9, fr;q=0.8", title, ">Straße<")
	in("fr", "de;q=0.8, fr", ">Nouvelles<", ">Street<", `placeholder="Search"`)
	in("fr", "it, de;q=0, fr;q=0.2", ">Nouvelles<")
	in("en", "en-GB, de;q=0.9", ">Street<")
	in("en", "it", ">Street<")
	in("en", "it, de;q=0", ">Street<")

	// The page is not the original any more, and says so to caches.
	a := news.get(t, "/", "Accept-Language: de", `If-None-Match: "original"`, "Range: bytes=0-3").want(t, http.StatusOK, ">Straße<")
	a.wantHeader(t, "ETag", "")
	if vary := strings.Join(a.header.Values("Vary"), ", "); vary != "Cookie, Accept-Language" {
		t.Errorf("Vary: %s", vary)
	}
	// What is no page is not touched, and what is one is translated whatever its status.
	if a := news.get(t, "/data", "Accept-Language: de").want(t, http.StatusOK, "").wantHeader(t, "ETag", `"original"`); string(a.body) != data {
		t.Errorf("the data is %s", a.body)
	}
	news.get(t, "/absent", "Accept-Language: de").want(t, http.StatusNotFound, ">Straße<")

	// A text is changed without a deploy, and texts that cannot be read are none.
	set("de", `{"title": "Neues"}`)
	in("de", "de", ">Neues<", ">Street<")
	set("fr", "this is no JSON")
	nearkeytest.Eventually(t, "French is lost", func() error {
		if a := speak("fr"); a.status != http.StatusOK || !strings.Contains(string(a.body), "News <em>today</em>") {
			return errors.New(string(a.body))
		}
		return nil
	})
	in("de", "de", ">Neues<")
}

package rest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/catalog"
)

// TestFlatMetadata: fields one by one become what they would be as JSON.
func TestFlatMetadata(t *testing.T) {
	for _, c := range []struct {
		fields []string // name=value
		want   string   // empty: refused
	}{
		{[]string{"metadata[main_module]=a.js", "metadata[limits][cpu_ms]=50", "metadata[logpush]=true"},
			`{"limits":{"cpu_ms":50},"logpush":true,"main_module":"a.js"}`},
		{[]string{"metadata[bindings][][type]=plain_text", "metadata[bindings][][text]=true", "metadata[bindings][][type]=b", "metadata[bindings][][type]=c", "metadata[bindings][][name]=n"},
			`{"bindings":[{"text":"true","type":"plain_text"},{"type":"b"},{"name":"n","type":"c"}]}`},
		{[]string{"metadata[compatibility_flags][]=x", "metadata[compatibility_flags][]=y"}, `{"compatibility_flags":["x","y"]}`},
		{[]string{"metadata[bindings][][json][a][]=1", "metadata[bindings][][json][a][]=2"}, `{"bindings":[{"json":{"a":["1","2"]}}]}`},
		{[]string{"metadata[limits][cpu_ms]=many"}, `{"limits":{"cpu_ms":"many"}}`},
		{[]string{"metadata[a]=1", "metadata[a]=2"}, ""},
		{[]string{"metadata[a]=1", "metadata[a][b]=2"}, ""},
		{[]string{"metadata[a][b]=1", "metadata[a]=2"}, ""},
		{[]string{"metadata[a][]=1", "metadata[a][b]=2"}, ""},
	} {
		in := map[string]any{}
		ok := true
		for _, field := range c.fields {
			name, value, _ := strings.Cut(field, "=")
			fields := flatFields(name, "metadata")
			ok = ok && setField(in, fields, flatValue(fields[len(fields)-1], value)) != nil
		}
		text, err := json.Marshal(in)
		switch {
		case err != nil:
			t.Errorf("%q: %v", c.fields, err)
		case !ok && c.want != "", ok && string(text) != c.want:
			t.Errorf("%q become %s, %v; want %q", c.fields, text, ok, c.want)
		}
	}
	for _, name := range []string{"metadata", "metadata[]", "metadata[a", "settings[a]", "metadata" + strings.Repeat("[a]", maxFlatDepth+1)} {
		if fields := flatFields(name, "metadata"); fields != nil {
			t.Errorf("%q is a field: %q", name, fields)
		}
	}
	if fields := flatFields("metadata"+strings.Repeat("[a]", maxFlatDepth), "metadata"); len(fields) != maxFlatDepth {
		t.Errorf("the deepest field is %q", fields)
	}
}

// TestWorkerUploadsOfSDKs: metadata field by field, in a form that says that it is
// a script; files under one name; and a script without a form.
func TestWorkerUploadsOfSDKs(t *testing.T) {
	w := newWorkersWorld(t)
	put := func(contentType, body string) answer {
		t.Helper()
		return w.do(request{method: "PUT", path: in("/workers/scripts/a"), body: body, header: map[string]string{"Content-Type": contentType}})
	}
	body, contentType := formOf(t, part{"metadata[main_module]", "", "src/x.mjs"}, part{"metadata[bindings][][name]", "", "V"},
		part{"metadata[bindings][][type]", "", "plain_text"}, part{"metadata[bindings][][text]", "", "v"}, part{"FILES", esModule, hello.content})
	for _, files := range []string{"files", "files[]", "files[0]", "files.0"} {
		sent := strings.Replace(body, `name="FILES"; filename="FILES"`, `name="`+files+`"; filename="src/x.mjs"`, 1)
		for _, kind := range []string{contentType, "application/javascript", "text/javascript; charset=utf-8"} {
			put(kind, sent).ok()
			if m := w.last().Manifest; m.Main != "src/x.mjs" || len(m.Bindings) != 1 || m.Bindings[0].Text != "v" {
				t.Errorf("%s as %s: %+v", files, kind, m)
			}
		}
	}
	put("application/javascript", "addEventListener('fetch', () => {})").ok()
	if got := w.last(); !got.Manifest.ServiceWorker || string(got.Modules[got.Manifest.Main]) != "addEventListener('fetch', () => {})" {
		t.Errorf("a script without a form: %+v", got)
	}
	put("application/javascript", "--fetch").ok() // no form, and nothing but a script
	put("application/octet-stream", body).fails(400, 10021, "A Worker is uploaded as multipart/form-data with a part 'metadata' and a part for each module.")
	long := func(n int) answer {
		return w.send("PUT", "scripts/a", hello, part{"metadata[main_module]", "", "index.js"},
			part{"metadata[x]", "", strings.Repeat("x", n-len("index.js"))})
	}
	long(maxUploadMetadata).ok()
	long(maxUploadMetadata+1).fails(400, 10021, "The metadata has more than 1048576 bytes.")
	parts := []part{hello, {"metadata[main_module]", "", "index.js"}}
	for i := range scriptParts - 2 {
		parts = append(parts, part{fmt.Sprintf("metadata[x%d]", i), "", ""})
	}
	w.send("PUT", "scripts/a", parts...).ok()
	w.send("PUT", "scripts/a", append(parts, part{"metadata[y]", "", ""})...).fails(400, 10012, "put script: 'A form has at most 2001 fields'")
}

// FuzzWorkerUpload: whatever the form of an upload is, it is read or refused, and
// nothing of it is held afterwards.
func FuzzWorkerUpload(f *testing.F) {
	body, contentType := formOf(f, metadata(`{"name":"V","type":"plain_text","text":"v"}`), hello, part{"metadata[a][]", "", "1"})
	f.Add(contentType, body)
	f.Add("application/javascript", body)
	f.Add("application/javascript", "fetch")
	server := New(Config{Catalog: &catalog.Catalog{}})
	f.Fuzz(func(t *testing.T, contentType, body string) {
		r := httptest.NewRequest("PUT", "/", strings.NewReader(body))
		r.Header.Set("Content-Type", contentType)
		c := &call{w: httptest.NewRecorder(), r: r}
		c.hold.door = server.door
		c.body.begin(c)
		up, err := c.readScript("metadata")
		if err == nil {
			_, err = parseMetadata(up.metadata)
		}
		var refused *failure
		if err != nil && (!errors.As(err, &refused) || refused.status >= 500) {
			t.Errorf("%v", err)
		}
		c.hold.close()
		if held := server.door.held.Load(); held != 0 {
			t.Errorf("%d bytes are held", held)
		}
	})
}

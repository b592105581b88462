package rest

import (
	"bytes"
	"fmt"
	"mime/multipart"
	"net/textproto"
	"strings"
	"testing"
)

type field struct{ name, value string }

// formBody writes a form. A name may have a file name after a bar.
func formBody(fields ...field) (body, contentType string) {
	var buf bytes.Buffer
	form := multipart.NewWriter(&buf)
	for _, f := range fields {
		name, file, isFile := strings.Cut(f.name, "|")
		h := textproto.MIMEHeader{}
		h.Set("Content-Disposition", fmt.Sprintf(`form-data; name=%q`, name))
		if isFile {
			h.Set("Content-Disposition", fmt.Sprintf(`form-data; name=%q; filename=%q`, name, file))
			h.Set("Content-Type", "application/octet-stream")
		}
		part, err := form.CreatePart(h)
		if err != nil {
			panic(err)
		}
		part.Write([]byte(f.value))
	}
	form.Close()
	return buf.String(), form.FormDataContentType()
}

func (w *world) putForm(path string, fields ...field) answer {
	w.t.Helper()
	body, contentType := formBody(fields...)
	return w.do(request{method: "PUT", path: path, body: body, header: map[string]string{"Content-Type": contentType}})
}

func TestForms(t *testing.T) {
	w := newWorld(t)
	binary := "\x00\r\n--\xff" + strings.Repeat("b", 5000)
	for _, tt := range []struct {
		name     string
		fields   []field
		metadata string
	}{
		{"value first", []field{{"value", binary}, {"metadata", `{"a":1}`}}, `{"a":1}`},
		{"metadata first", []field{{"metadata", `{"a":1}`}, {"value", binary}}, `{"a":1}`},
		{"no metadata", []field{{"value", binary}}, `null`},
		{"file", []field{{"value|blob", binary}, {"metadata", `[1, 2]`}}, `[1,2]`},
		{"metadata is a file", []field{{"metadata|m.json", `"s"`}, {"value", binary}}, `"s"`},
		{"null", []field{{"metadata", `null`}, {"value", binary}}, `null`},
		{"flattened by SDKs", []field{{"metadata.a", `1`}, {"metadata[b]", "2"}, {"value", binary}}, `null`},
		{"unknown fields", []field{{"other", "x"}, {"value", binary}, {"other", "y"}, {"metadata", "0"}, {"more", "z"}}, `0`},
	} {
		w.putForm("values/a", tt.fields...).is("null")
		if got := w.value("a"); got != binary {
			t.Errorf("%s: value %q", tt.name, got)
		}
		w.get("metadata/a").is(tt.metadata)
	}
	w.putForm("values/a", field{"value", ""}).ok()
	if got := w.value("a"); got != "" {
		t.Errorf("empty value: %q", got)
	}
	body, contentType := formBody(field{"value", "v"})
	w.do(request{method: "PUT", path: "values/upper", body: body, header: map[string]string{
		"Content-Type": strings.Replace(contentType, "multipart/form-data", "Multipart/Form-Data", 1)}}).ok()
	if got := w.value("upper"); got != "v" {
		t.Errorf("a type in upper case: %q", got)
	}
}

func TestBadForms(t *testing.T) {
	w := newWorld(t)
	badJSON, twice := "metadata must be valid json", "put: 'The form has the field '%s' twice'"
	for _, tt := range []struct {
		fields  []field
		status  int
		code    int
		message string
	}{
		{[]field{{"metadata", "{}"}}, 400, 10047, "put: 'multipart put request does not contain required form field 'value''"},
		{nil, 400, 10047, "put: 'multipart put request does not contain required form field 'value''"},
		{[]field{{"metadata", "{"}, {"value", "v"}}, 400, 10147, badJSON},
		{[]field{{"value", "v"}, {"metadata", "nope"}}, 400, 10147, badJSON},
		{[]field{{"value", "v"}, {"metadata", ""}}, 400, 10147, badJSON},
		{[]field{{"value", "v"}, {"metadata", "\"\xff\""}}, 400, 10147, badJSON},
		{[]field{{"value", "v"}, {"value", "w"}}, 400, 10012, fmt.Sprintf(twice, "value")},
		{[]field{{"metadata", "1"}, {"metadata", "1"}, {"value", "w"}}, 400, 10012, fmt.Sprintf(twice, "metadata")},
		{[]field{{"value", "v"}, {"metadata", `"` + strings.Repeat("m", 1023) + `"`}}, 413, 10030, "put: 'Metadata length of 1025 exceeds limit of 1024.'"},
		{[]field{{"value", "v"}, {"metadata", strings.Repeat(" ", metadataTextBytes) + "1"}}, 413, 10030,
			fmt.Sprintf("put: 'Metadata length of %d exceeds limit of 1024.'", metadataTextBytes+1)},
		{[]field{{"value", strings.Repeat("v", 25<<20+1)}}, 413, 10024, "put: 'Value length of 26214401 exceeds limit of 26214400.'"},
		{[]field{{"other", strings.Repeat("x", formOverheadBytes+64<<10)}, {"value", "v"}}, 413, 10012,
			fmt.Sprintf("put: 'The form has a field of more than %d bytes beside its value'", formOverheadBytes)},
	} {
		w.putForm("values/a", tt.fields...).fails(tt.status, tt.code, tt.message)
		w.get("values/a").fails(404, 10009, "get: 'key not found'")
	}
	for _, contentType := range []string{"multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary"} {
		w.do(request{method: "PUT", path: "values/a", body: "--x", header: map[string]string{"Content-Type": contentType}}).
			fails(400, 10012, "put: 'The Content-Type multipart/form-data must name a boundary'")
	}
}

func TestFormLimits(t *testing.T) {
	w := newWorld(t)
	most := strings.Repeat("v", 25<<20)
	for _, name := range []string{"value", "value|blob"} {
		w.putForm("values/a", field{"metadata", `"` + strings.Repeat("m", 1022) + `"`}, field{name, most}).ok()
		if got := w.value("a"); got != most {
			t.Errorf("%s: 25 MiB came back as %d bytes", name, len(got))
		}
	}
	// The same without a length.
	body, contentType := formBody(field{"value", most})
	req := w.request(request{method: "PUT", path: "values/b", body: body, header: map[string]string{"Content-Type": contentType}})
	req.ContentLength = -1
	if rec := recordOf(w, req); rec.Code != 200 || w.value("b") != most {
		t.Errorf("without a length: %d %s", rec.Code, rec.Body)
	}
	// Space that JSON does not need does not count.
	w.putForm("values/c", field{"value", "v"}, field{"metadata", strings.Repeat(" ", 5000) + "1"}).ok()
	w.get("metadata/c").is("1")
	many := make([]field, formParts)
	for i := range many {
		many[i] = field{"other", "x"}
	}
	many[0] = field{"value", "v"}
	w.putForm("values/d", many...).ok()
	w.putForm("values/d", append(many, field{"other", "x"})...).fails(400, 10012, fmt.Sprintf("put: 'A form has at most %d fields'", formParts))
}

// TestCutForms: a form that ends anywhere before its last boundary stores nothing.
func TestCutForms(t *testing.T) {
	w := newWorld(t)
	body, contentType := formBody(field{"value", "the value"}, field{"metadata", "{}"})
	end := strings.LastIndex(body, "--") // the last two bytes of the last boundary
	for n := range end {
		a := w.do(request{method: "PUT", path: "values/a", body: body[:n], header: map[string]string{"Content-Type": contentType}})
		if a.status != 400 || a.Errors[0].Code != 10012 {
			t.Fatalf("cut after %d bytes: %d %s", n, a.status, a.body)
		}
	}
	w.get("values/a").fails(404, 10009, "get: 'key not found'")
	w.do(request{method: "PUT", path: "values/a", body: body + "an epilogue", header: map[string]string{"Content-Type": contentType}}).ok()
}

func FuzzMultipart(f *testing.F) {
	for _, fields := range [][]field{{{"value", "v"}}, {{"metadata", "{}"}, {"value|blob", "v"}}, {{"value", "a"}, {"value", "b"}}, {{"metadata[a]", "1"}, {"value", "\r\n--"}}} {
		body, contentType := formBody(fields...)
		boundary := strings.TrimPrefix(contentType, "multipart/form-data; boundary=")
		f.Add(strings.ReplaceAll(body, boundary, "B"), true)
		f.Add(strings.ReplaceAll(body, boundary, "B"), false)
	}
	w := newWorld(f)
	f.Fuzz(func(t *testing.T, body string, known bool) {
		w.t = t
		req := w.request(request{method: "PUT", path: "values/a", body: body, header: map[string]string{"Content-Type": "multipart/form-data; boundary=B"}})
		if !known {
			req.ContentLength = -1
		}
		w.delete("values/a").ok()
		rec := recordOf(w, req)
		if held := w.server.door.held.Load(); held != 0 {
			t.Fatalf("%d bytes are still held", held)
		}
		a := w.get("values/a")
		if stored := a.status == 200; stored != (rec.Code == 200) {
			t.Fatalf("answer %d %s, but stored is %v", rec.Code, rec.Body, stored)
		}
		if rec.Code >= 500 {
			t.Fatalf("answer %d %s", rec.Code, rec.Body)
		}
		if a.status != 200 {
			return
		}
		// A value that was stored is what the standard library finds in the form.
		form, err := multipart.NewReader(strings.NewReader(body), "B").ReadForm(1 << 20)
		if err != nil {
			return // it decodes and refuses more than we look at
		}
		defer form.RemoveAll()
		for _, value := range form.Value["value"] {
			if value != a.body && !strings.Contains(strings.ToLower(body), "content-transfer-encoding") {
				t.Fatalf("stored %q, the form has %q", a.body, value)
			}
		}
	})
}

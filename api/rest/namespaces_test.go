package rest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestNamespaces(t *testing.T) {
	w := newWorld(t)
	spaces := in("/storage/kv/namespaces")
	var made space
	// As the SDK in wrangler sends it: printed over several lines.
	w.post(spaces, "{\n  \"title\": \"second <&>\",\n  \"other\": [1]\n}").result(&made)
	if !isHexID(made.ID) || made.Title != "second <&>" || !made.SupportsURLEncoding {
		t.Errorf("created %+v", made)
	}
	object := fmt.Sprintf(`{"id":"%s","title":"second <&>","supports_url_encoding":true}`, made.ID)
	w.get(spaces + "/" + made.ID).is(object)
	w.do(request{method: "PUT", path: spaces + "/" + made.ID, body: `{"title":"renamed"}`}).is(strings.Replace(object, "second <&>", "renamed", 1))
	w.put(spaces+"/"+made.ID, `{"title":"renamed"}`).ok() // its own title is not taken
	w.post(spaces, `{"title":"in europe","jurisdiction":"eu"}`).ok()
	var list []map[string]any
	w.get(spaces).result(&list)
	if len(list) != 3 || list[1]["title"] != "in europe" || list[1]["jurisdiction"] != "eu" || list[0]["jurisdiction"] != nil {
		t.Errorf("listing %v", list)
	}
	w.delete(spaces + "/" + made.ID).is("null")
	if w.dropped.Load() != 1 {
		t.Errorf("Dropped was called %d times", w.dropped.Load())
	}
	w.delete(spaces+"/"+made.ID).fails(404, 10013, "remove namespace: 'namespace not found'")
	w.get(spaces+"/"+made.ID+"/values/a").fails(404, 10013, "get: 'namespace not found'")
}

func TestNamespaceErrors(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.Namespaces = 2 })
	spaces := in("/storage/kv/namespaces")
	one := spaces + "/" + w.ns.ID.String()
	missing := "request is missing a title definition"
	for _, body := range []string{`{}`, `{"title":""}`, `{"title":null}`} {
		w.post(spaces, body).fails(400, 10019, missing)
		w.put(one, body).fails(400, 10019, missing)
	}
	for body, reason := range map[string]string{"": "The request body is not valid JSON", "title=x": "The request body is not valid JSON", `{"title":5}`: "The field 'title' of the request body has the wrong type", `[]`: "The request body must be a JSON object"} {
		w.post(spaces, body).fails(400, 10012, "create namespace: '"+reason+"'")
		w.put(one, body).fails(400, 10012, "rename namespace: '"+reason+"'")
	}
	w.post(spaces, `{"title":"first"}`).fails(400, 10014, "create namespace: 'a namespace with this account ID and title already exists'")
	w.post(spaces, `{"title":"x","jurisdiction":"mars"}`).fails(400, 10012, "create namespace: 'Invalid jurisdiction. Please specify 'eu', 'us' or 'fedramp', or none.'")
	w.post(spaces, `{"title":"`+strings.Repeat("é", 513)+`"}`).fails(400, 10035, "create namespace: 'a title has at most 512 characters'")
	w.post(spaces, `{"title":"`+strings.Repeat("é", 512)+`"}`).ok()
	w.put(one, `{"title":"`+strings.Repeat("é", 512)+`"}`).fails(400, 10014, "rename namespace: 'a namespace with this account ID and title already exists'")
	w.put(one, `{"title":"`+strings.Repeat("é", 513)+`"}`).fails(400, 10035, "rename namespace: 'a title has at most 512 characters'")
	w.post(spaces, `{"title":"third"}`).fails(400, 10018, "create namespace: 'this account has as many namespaces as it may have'")
	most := `{"title":"x","pad":"` + strings.Repeat("p", controlBodyBytes-22) + `"}`
	w.put(one, most).ok()
	w.put(one, most+" ").fails(413, 10012, fmt.Sprintf("rename namespace: 'The request body of %d bytes is too large'", controlBodyBytes+1))
}

func TestNamespacePages(t *testing.T) {
	w := newWorld(t)
	const total = 45
	for i := range total - 1 {
		if _, err := w.catalog.CreateNamespace(t.Context(), accountID, fmt.Sprintf("n%02d", i), "", 0); err != nil {
			t.Fatal(err)
		}
	}
	spaces := in("/storage/kv/namespaces")
	page := func(query string) (titles []string, a answer) {
		a = w.get(spaces + query).ok()
		var list []space
		if err := json.Unmarshal(a.Result, &list); err != nil || a.Result[0] != '[' {
			t.Fatalf("%s: %v", a.Result, err)
		}
		for _, n := range list {
			titles = append(titles, n.Title)
		}
		return titles, a
	}
	for _, tt := range []struct {
		query                     string
		page, perPage, count, all int
		first                     string
	}{
		{"", 1, 20, 20, 3, "first"}, {"?page=3", 3, 20, 5, 3, "n39"}, {"?page=4", 4, 20, 0, 3, ""}, {"?page=1000000000&per_page=1000", 1000000000, 1000, 0, 1, ""},
		{"?per_page=1000&order=title&direction=asc", 1, 1000, 45, 1, "first"}, {"?per_page=100&order=title&direction=asc&page=1", 1, 100, 45, 1, "first"},
		{"?per_page=50&page=2", 2, 50, 0, 1, ""}, {"?per_page=1&page=45", 45, 1, 1, 45, "n43"}, {"?per_page=45", 1, 45, 45, 1, "first"},
		{"?order=title&direction=desc", 1, 20, 20, 3, "n43"}, {"?unknown=x", 1, 20, 20, 3, "first"},
	} {
		titles, a := page(tt.query)
		info := a.ResultInfo
		if len(titles) != tt.count || info.Page != tt.page || info.PerPage != tt.perPage || info.Count != tt.count || info.TotalCount != total || info.TotalPages != tt.all {
			t.Errorf("%s: %d titles, %+v", tt.query, len(titles), info)
		}
		if tt.first != "" && titles[0] != tt.first {
			t.Errorf("%s begins with %s, want %s", tt.query, titles[0], tt.first)
		}
	}
	// As SDKs page: until an empty page.
	var all []string
	for n := 1; ; n++ {
		titles, _ := page(fmt.Sprintf("?per_page=7&page=%d&order=id", n))
		if len(titles) == 0 {
			break
		}
		all = append(all, titles...)
	}
	if slices.Sort(all); len(slices.Compact(all)) != total {
		t.Errorf("paging found %d namespaces, want %d", len(all), total)
	}
	for query, message := range map[string]string{
		"?page=0":         "Invalid page of 0. Please specify an integer between 1 and 1000000000.",
		"?page=x":         "Invalid page of x. Please specify an integer between 1 and 1000000000.",
		"?per_page=0":     "Invalid per_page of 0. Please specify an integer between 1 and 1000.",
		"?per_page=1001":  "Invalid per_page of 1001. Please specify an integer between 1 and 1000.",
		"?order=size":     "Invalid order. Please specify 'id' or 'title' as order and 'asc' or 'desc' as direction.",
		"?direction=left": "Invalid order. Please specify 'id' or 'title' as order and 'asc' or 'desc' as direction.",
	} {
		w.get(spaces+query).fails(400, 10012, "list namespaces: '"+message+"'")
	}
}

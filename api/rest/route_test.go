package rest

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

const nsID = "0f2ac74b498b48028cb68387c421e279"

func TestParseRoute(t *testing.T) {
	acc := "/client/v4/accounts/" + accountID
	space := acc + "/storage/kv/namespaces/" + nsID
	for _, tt := range []struct {
		path string
		want string // kind and its parts; "": no route
	}{
		{"/healthz", "healthz"}, {"/readyz", "readyz"}, {"/metrics", "metrics"},
		{"/healthz/", ""}, {"/", ""}, {"", ""}, {"*", ""}, {"/client/v4", ""}, {"/client/v4/", ""}, {"/client/v4user", ""},
		{"/user", ""}, {"/client/v5/user", ""},
		{"/client/v4/user", "user"}, {"/client/v4//user", "user"}, {"/client/v4///user", "user"}, {"/client/v4/user/", ""},
		{"/client/v4/user/tokens/verify", "user/tokens/verify"}, {"/client/v4/user/tokens", ""}, {"/client/v4/user/tokens/verify/", ""},
		{"/client/v4/memberships", "memberships"}, {"/client/v4/memberships/x", ""},
		{"/client/v4/accounts", "accounts"}, {"/client/v4/accounts/", ""}, {"/client/v4/accounts/abc", ""},
		{acc, "account"}, {acc + "/", ""}, {strings.ToUpper(acc[len("/client/v4/accounts/"):]), ""},
		{"/client/v4/accounts/" + strings.ToUpper(accountID), "account"},
		{acc + "/tokens", "tokens"}, {acc + "/tokens/", ""}, {acc + "/tokens/verify", "tokens/verify"},
		{acc + "/tokens/x1", "token x1"}, {acc + "/tokens/x1/value", ""},
		{acc + "/storage/kv/namespaces", "namespaces"}, {acc + "/workers/namespaces", "namespaces"},
		{acc + "/storage/kv/namespaces/", "namespaces/"}, {acc + "/storage/kv/namespacesx", ""}, {acc + "/storage/kv", ""},
		{acc + "/storage//kv/namespaces", ""}, {acc + "//storage/kv/namespaces", ""},
		{acc + "/storage/kv/namespaces//values/k", ""},
		{space, "namespace " + nsID}, {space + "/", ""}, {space + "//", ""}, {space + "/x", ""},
		{acc + "/workers/namespaces/" + nsID + "/values/k", "values " + nsID + " k"},
		{space + "/keys", "keys " + nsID}, {space + "/keys/", ""}, {space + "/keys/x", ""},
		{space + "/bulk", "bulk " + nsID}, {space + "/bulk/", ""}, {space + "/bulk/delete", "bulk/delete " + nsID},
		{space + "/bulk/get", "bulk/get " + nsID}, {space + "/bulk/get/", ""}, {space + "/bulk/put", ""},
		{space + "/values", ""}, {space + "/values/", ""}, {space + "/metadata", ""}, {space + "/metadata/", ""},
		{space + "/values/a", "values " + nsID + " a"}, {space + "/values//", "values " + nsID + " /"},
		{space + "/values/a/b//c/", "values " + nsID + " a/b//c/"}, {space + "/values/a%2Fb%252F", "values " + nsID + " a%2Fb%252F"},
		{space + "/values/..", "values " + nsID + " .."}, {space + "/metadata/a", "metadata " + nsID + " a"},
		{space + "%2Fvalues/a", ""}, {space + "/values%2Fa", ""},
	} {
		r, ok := parseRoute(tt.path)
		got := ""
		if ok {
			got = strings.Join(strings.Fields(r.kind.String()+" "+r.namespace+" "+r.token+" "+r.key), " ")
		}
		if got != tt.want {
			t.Errorf("parseRoute(%q) = %q, want %q", tt.path, got, tt.want)
		}
		if ok && r.account != "" && r.account != accountID {
			t.Errorf("parseRoute(%q): account %q", tt.path, r.account)
		}
	}
}

// TestKeysInPaths: a key is what follows, decoded once, whichever client encoded it.
func TestKeysInPaths(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct{ path, key string }{
		{"my%20key%2Fwith%3Aodd%3F%23%252F%26%2B%C3%A9.", "my key/with:odd?#%2F&+é."}, // encodeURIComponent
		{"a/b//c/", "a/b//c/"}, // SDKs that do not escape
		{"a+b", "a+b"},         // a plus is a plus
		{"a%2Bb", "a+b"},       //
		{"%2Fa", "/a"},         //
		{"/a", "/a"},           // a slash of the key itself
		{"a%2F", "a/"},         //
		{"a%252Fb", "a%2Fb"},   // not decoded twice
		{"!$&'()*+,;=:@~._-", "!$&'()*+,;=:@~._-"}, // what the TypeScript SDK leaves alone
		{"a/../b", "a/../b"},                       // not cleaned
		{"a/./b", "a/./b"},                         //
		{"...", "..."},                             //
		{"%00%01%7F", "\x00\x01\x7f"},              //
		{"%C3%A9", "é"},                            //
		{"\u00e9\"<>^`{|}", "é\"<>^`{|}"},          // raw bytes that Go would have escaped
		{"x%2Fy\"z", "x/y\"z"},                     // and with them an escaped slash
		{"keys", "keys"}, {"a/keys", "a/keys"}, {"bulk/get", "bulk/get"},
	} {
		w.put("values/"+tt.path, "value of "+tt.key).ok()
		rec, err := w.store.Get(t.Context(), ref(w, tt.key), 0)
		if err != nil || string(rec.Value) != "value of "+tt.key {
			t.Errorf("put of %s stored %q under %q, %v", tt.path, rec.Value, tt.key, err)
		}
		if got := w.value(tt.path); got != "value of "+tt.key {
			t.Errorf("get of %s: %q", tt.path, got)
		}
		w.get("metadata/" + tt.path).is("null")
		w.delete("values/" + tt.path).ok()
		w.get("values/"+tt.path).fails(404, 10009, "get: 'key not found'")
	}
}

// TestDegenerateKeys: what clients make of the keys "", "." and ".." has no route,
// and the last does not rename the namespace.
func TestDegenerateKeys(t *testing.T) {
	w := newWorld(t)
	for _, method := range []string{"GET", "PUT", "DELETE", "HEAD", "POST", "PATCH"} {
		for _, path := range []string{"values/", "values", "metadata/", "metadata", "", "/"} {
			whole := w.path("x")
			whole = whole[:len(whole)-1] + path
			a := w.do(request{method: method, path: whole, body: `{"title":"renamed"}`})
			a.fails(404, 7003, "Could not route to "+whole+", perhaps your object identifier is invalid?")
			if len(a.Errors) != 2 || a.Errors[1].Code != 7000 || a.Errors[1].Message != "No route for that URI" {
				t.Errorf("%s %s: errors %v", method, whole, a.Errors)
			}
			if a.header.Get("Location") != "" {
				t.Errorf("%s %s redirects", method, whole)
			}
		}
	}
	var space struct{ Title string }
	if w.get(strings.TrimSuffix(w.path("x"), "/x")).result(&space); space.Title != "first" {
		t.Errorf("the namespace is now called %q", space.Title)
	}
	for _, key := range []string{".", "..", "%2E", "%2e%2E"} {
		decoded, _ := url.PathUnescape(key)
		w.put("values/"+key, "v").fails(400, 10012, `put: 'Illegal key name "`+decoded+`". Please use a different name.'`)
		w.get("values/"+key).fails(400, 10012, `get: 'Illegal key name "`+decoded+`". Please use a different name.'`)
	}
	w.put("values/%FF", "v").fails(400, 10012, "put: 'Could not URL-decode key name'")
}

func TestUndecodableKey(t *testing.T) {
	w := newWorld(t)
	req := w.request(request{method: "PUT", path: "values/x"})
	req.URL.RawPath = req.URL.Path[:len(req.URL.Path)-1] + "%zz"
	rec := recordOf(w, req)
	if rec.Code != 400 || !strings.Contains(rec.Body.String(), "Could not URL-decode key name") {
		t.Errorf("answer %d %s", rec.Code, rec.Body)
	}
}

func TestMethodNotAllowed(t *testing.T) {
	w := newWorld(t)
	spaces := in("/storage/kv/namespaces")
	for _, tt := range []struct{ method, path, allow string }{
		{"POST", "values/a", "GET, HEAD, PUT, DELETE"},
		{"PATCH", "values/a", "GET, HEAD, PUT, DELETE"},
		{"PUT", "metadata/a", "GET, HEAD"},
		{"POST", "keys", "GET, HEAD"},
		{"GET", "bulk", "PUT, DELETE"},
		{"POST", "bulk", "PUT, DELETE"},
		{"PUT", "bulk/get", "POST"},
		{"DELETE", "bulk/delete", "POST"},
		{"POST", spaces + "/" + nsID, "GET, HEAD, PUT, DELETE"},
		{"PUT", spaces, "GET, HEAD, POST"},
		{"PUT", basePath + "/accounts", "GET, HEAD"},
		{"POST", "/healthz", "GET, HEAD"},
		{"DELETE", in("/tokens"), "GET, HEAD, POST"},
		{"PUT", in("/tokens/x"), "GET, HEAD, DELETE"},
		{"OPTIONS", basePath + "/user", "GET, HEAD"},
	} {
		a := w.do(request{method: tt.method, path: tt.path, token: "none"})
		a.fails(405, 7001, tt.method+" not supported for requested URI.")
		if got := a.header.Get("Allow"); got != tt.allow {
			t.Errorf("%s %s: Allow %q, want %q", tt.method, tt.path, got, tt.allow)
		}
	}
	for _, path := range []string{spaces, spaces + "/"} {
		w.delete(path).fails(405, 10405, "DELETE method not allowed for the api_token authentication scheme")
	}
	for _, method := range []string{"GET", "PUT", "POST"} {
		w.do(request{method: method, path: spaces + "/"}).fails(404, 7003, "Could not route to "+spaces+"/, perhaps your object identifier is invalid?")
	}
}

func TestBaseURLWithSlash(t *testing.T) {
	w := newWorld(t)
	doubled := strings.Replace(w.path("values/a//b"), basePath+"/", basePath+"//", 1)
	w.put(doubled, "v").ok()
	if got := w.value("a//b"); got != "v" {
		t.Errorf("value %q", got)
	}
}

func TestLegacyRoutes(t *testing.T) {
	w := newWorld(t)
	legacy := in("/workers/namespaces/") + w.ns.ID.String()
	w.put(legacy+"/values/a", "v").ok()
	if got := w.value("a"); got != "v" {
		t.Errorf("value %q", got)
	}
	w.get(in("/workers/namespaces")).ok()
	w.post(legacy+"/bulk/get", `{"keys":["a"]}`).is(`{"values":{"a":"v"}}`)
}

func TestParameter(t *testing.T) {
	for _, tt := range []struct{ query, want string }{
		{"", ""}, {"x=1", ""}, {"p", ""}, {"p=", ""}, {"p=a+b", "a b"}, {"p=a%20b", "a b"}, {"p=a%2Bb", "a+b"}, {"p=a;b", "a;b"},
		{"x=%zz&p=1", "1"}, {"%70=1", "1"}, {"p=1&p=2", "1"}, {"&&p=1&", "1"}, {"p=a=b", "a=b"}, {"P=1", ""}, {"%zz=1", ""},
	} {
		if got, err := parameter(tt.query, "p"); got != tt.want || err != nil {
			t.Errorf("parameter(%q) = %q, %v; want %q", tt.query, got, err, tt.want)
		}
	}
	if _, err := parameter("p=%zz", "p"); err == nil {
		t.Error("a value that cannot be decoded passes")
	}
	w := newWorld(t)
	w.get("keys?prefix=%zz").fails(400, 10012, "list keys: 'Could not URL-decode the query parameter prefix'")
}

func FuzzPath(f *testing.F) {
	for _, path := range []string{"/client/v4/user", "/client/v4//accounts", "/healthz", "/client/v4/accounts/" + accountID + "/tokens/x",
		"/client/v4/accounts/" + accountID + "/storage/kv/namespaces/" + nsID + "/values/a%2Fb/%2E%2e/c%25",
		"/client/v4/accounts/" + accountID + "/workers/namespaces/" + nsID + "/metadata/%zz"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			return
		}
		sent := sentPath(u)
		if before, _, _ := strings.Cut(path, "?"); strings.HasPrefix(path, "/") && u.RawPath != "" && sent != before {
			t.Errorf("path %q was taken for %q", before, sent)
		}
		r, ok := parseRoute(sent)
		if !ok {
			return
		}
		if (r.kind == routeValue || r.kind == routeMetadata) != (r.key != "") {
			t.Errorf("%q: kind %s with key %q", path, r.kind, r.key)
		}
		if r.key == "" {
			return
		}
		if !strings.HasSuffix(sent, "/"+r.key) {
			t.Errorf("%q: the key %q is not what follows", path, r.key)
		}
		key, err := decodeKey(r.key)
		if err != nil {
			return
		}
		// However a client escapes the key, it is the same key.
		again, err := decodeKey(url.PathEscape(key))
		if err != nil || again != key {
			t.Errorf("key %q became %q, %v", key, again, err)
		}
	})
}

func TestHead(t *testing.T) {
	w := newWorld(t)
	w.put("values/a", "hello").ok()
	server := w.listen()
	for path, want := range map[string]int{"values/a": 200, "values/b": 404, "keys": 200, "metadata/a": 200} {
		req, _ := http.NewRequest("HEAD", server+w.path(path), nil)
		req.Header.Set("Authorization", "Bearer "+rootToken)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want || res.ContentLength <= 0 {
			t.Errorf("HEAD %s: %s, length %d", path, res.Status, res.ContentLength)
		}
		if path == "values/a" && res.ContentLength != 5 {
			t.Errorf("HEAD of a value: length %d", res.ContentLength)
		}
	}
}

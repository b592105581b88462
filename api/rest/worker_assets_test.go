package rest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/catalog"
)

const (
	hashA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	hashB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	listA = `{"manifest":{"/a.html":{"hash":"` + hashA + `","size":3},"/b":{"hash":"` + hashB + `","size":3}}}`

	badAssetToken = "The token of the assets upload session is not valid. Please begin another session."
)

// session begins to upload assets.
func (w *workersWorld) session(name, list string) assetSession {
	w.t.Helper()
	return decode[assetSession](w.at("POST", "scripts/"+name+"/assets-upload-session", list).ok())
}

// upload sends files as wrangler does, with a session's token.
func (w *workersWorld) upload(jwt string, parts ...part) answer {
	w.t.Helper()
	for i := range parts {
		parts[i].content = base64.StdEncoding.EncodeToString([]byte(parts[i].content))
	}
	return w.uploadRaw(jwt, "?base64=true", parts...)
}

func (w *workersWorld) uploadRaw(jwt, query string, parts ...part) answer {
	w.t.Helper()
	body, contentType := formOf(w.t, parts...)
	return w.do(request{method: "POST", path: in("/workers/assets/upload" + query), body: body, token: jwt,
		header: map[string]string{"Content-Type": contentType}})
}

// withAssets is metadata of a Worker with a main module, if it has a name, and with
// the assets of a token.
func withAssets(main, jwt, config string) part {
	if main != "" {
		main = `"main_module":"` + main + `",`
	}
	return part{"metadata", "", `{` + main + `"compatibility_date":"2026-01-01","assets":{"jwt":"` + jwt + `","config":{` + config + `}}}`}
}

// TestAssets: a session, uploads in two forms, versions with and without code, and
// a second session that has nothing to upload.
func TestAssets(t *testing.T) {
	w := newWorkersWorld(t)
	begun := w.session("site", listA)
	if len(begun.Buckets) != 1 || !slices.Equal(begun.Buckets[0], []string{hashA, hashB}) {
		t.Fatalf("buckets %q", begun.Buckets)
	}
	var claims struct{ Exp int64 }
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(begun.JWT, ".")[1])
	if err != nil || json.Unmarshal(payload, &claims) != nil || time.Until(time.Unix(claims.Exp, 0)) < time.Minute {
		t.Errorf("payload %s (%v)", payload, err)
	}
	w.send("PUT", "scripts/site", withAssets("", begun.JWT, "")).fails(400, 10021, "The upload of the assets is not complete.")
	if a := w.upload(begun.JWT, part{hashA, "text/html; charset=utf-8", "<a>"}); a.status != 202 || !a.Success {
		t.Fatalf("%d %s", a.status, a.body)
	}
	a := w.upload(begun.JWT, part{hashB, "application/null", "bin"})
	if a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	a.status = 200
	done := decode[assetSession](a)
	script := decode[shownScript](w.send("PUT", "scripts/site", withAssets("", done.JWT, `"html_handling":"none","not_found_handling":"404-page","_redirects":"/x /y","_headers":"/*\nA: b"`)).ok())
	if !script.HasAssets || script.HasModules || len(w.bundles) != 0 {
		t.Errorf("%+v, %d were tried out", script, len(w.bundles))
	}
	got := w.serving("site").Manifest
	if a := got.Assets; got.Main != "" || a.HTMLHandling != "none" || a.NotFoundHandling != "404-page" || a.Redirects != "/x /y" || a.Headers != "/*\nA: b" {
		t.Errorf("%+v", got)
	}
	for hash, want := range map[string]string{hashA: "text/html; charset=utf-8 <a>", hashB: " bin"} {
		f, err := catalog.NewWorkerReplica(w.server.store, catalog.ReplicaOptions{}).Asset(t.Context(), accountID, hash)
		if err != nil || f.Type+" "+string(f.Content) != want {
			t.Errorf("%s: %q %q, %v", hash, f.Type, f.Content, err)
		}
	}

	again := w.session("site", listA)
	if again.Buckets == nil || len(again.Buckets) != 0 {
		t.Errorf("buckets %q of what is there", again.Buckets)
	}
	w.send("POST", "scripts/site/versions", withAssets("index.js", again.JWT, `"run_worker_first":["/api/*","!/api/x"]`), hello).ok()
	v, err := w.catalog.LatestVersion(t.Context(), accountID, "site")
	if err != nil || v.Manifest.Assets == nil || len(v.Manifest.Assets.WorkerRules) != 2 || v.Manifest.Main != "index.js" {
		t.Errorf("%+v, %v", v.Manifest, err)
	}
	w.send("PUT", "scripts/site", part{"metadata", "", `{"main_module":"index.js","keep_assets":true,"bindings":[{"name":"ASSETS","type":"assets"}]}`}, hello).ok()
	if got := w.serving("site").Manifest; got.Assets.Set != v.Manifest.Assets.Set || len(got.Assets.WorkerRules) != 2 || got.Bindings[0].Type != "assets" {
		t.Errorf("%+v", got)
	}
	w.send("PUT", "scripts/site", part{"metadata", "", `{"main_module":"index.js","keep_assets":true,"assets":{"config":{"serve_directly":false}}}`}, hello).ok()
	if got := w.serving("site").Manifest.Assets; !got.WorkerFirst || got.WorkerRules != nil {
		t.Errorf("%+v", got)
	}
	w.at("PUT", "scripts/site/secrets", `{"name":"S","type":"secret_text","text":"s"}`).ok()
	if w.serving("site").Manifest.Assets == nil {
		t.Error("a secret took the assets away")
	}
	w.send("PUT", "scripts/site", metadata(""), hello).ok()
	if w.serving("site").Manifest.Assets != nil {
		t.Error("assets stay that nobody asks for")
	}
	w.send("POST", "scripts/site/versions", part{"metadata", "", `{"main_module":"index.js","keep_assets":true}`}, hello).ok() // none are there
}

// TestAssetsRefused: what is wrong with a session, an upload or a configuration.
func TestAssetsRefused(t *testing.T) {
	w := newWorkersWorld(t)
	at := "scripts/site/assets-upload-session"
	w.at("POST", at, "{").fails(400, 10012, "begin upload of assets: 'The request body must be a JSON object whose 'manifest' tells the hash and the size of each file'")
	w.at("POST", at, `{"manifest":{"/a":{"hash":"x","size":1}}}`).fails(400, 10012, `static file /a: its hash has 32 hexadecimal digits, "x" is none`)
	w.at("POST", at, fmt.Sprintf(`{"manifest":{"/a":{"hash":%q,"size":%d}}}`, hashA, catalog.MaxAssetBytes+1)).fails(400, 10012, "static file /a has 26214401 bytes, a file has at most 26214400")
	w.at("POST", "scripts/-/assets-upload-session", listA)
	begun := w.session("site", listA)

	forged := begun.JWT[:len(begun.JWT)-2] + "xx"
	head, rest, _ := strings.Cut(begun.JWT, ".")
	expired := func(change func(*assetToken)) string {
		token, err := w.server.readAssetJWT(begun.JWT, accountID)
		if err != nil {
			t.Fatal(err)
		}
		change(&token)
		text, _ := json.Marshal(token)
		signed := jwtHead + "." + base64.RawURLEncoding.EncodeToString(text)
		return signed + "." + base64.RawURLEncoding.EncodeToString(w.server.workers.Keys.Sign([]byte(signed)))
	}
	for name, jwt := range map[string]string{"none": "none", "the API's": rootToken, "forged": forged, "another head": "e30." + rest, "half": head, "long": strings.Repeat("a", maxAssetJWT) + "." + head,
		"of another account": expired(func(t *assetToken) { t.Account = "b" })} {
		if a := w.upload(jwt, part{hashA, "text/html", "<a>"}); a.status != 401 || a.Errors[0].Code != codeAssetToken || a.Errors[0].Message != badAssetToken {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	w.upload(expired(func(t *assetToken) { t.Expires = time.Now().Unix() }), part{hashA, "text/html", "<a>"}).
		fails(401, codeAssetToken, "The token of the assets upload session has expired. Please begin another session: what was uploaded is kept.")
	w.upload(expired(func(t *assetToken) { t.Set = strings.Repeat("0", 64) }), part{hashA, "text/html", "<a>"}).
		fails(401, codeAssetToken, "The assets upload session has ended. Please begin another one.")

	const upload = "upload assets: '"
	other := strings.Repeat("c", 32)
	w.upload(begun.JWT, part{other, "text/html", "<a>"}).fails(400, 10012, upload+"The asset '"+other+"' is not among those of the upload session'")
	for _, content := range []string{"<a", "<a>b", ""} {
		w.upload(begun.JWT, part{hashA, "text/html", content}).fails(400, 10012, upload+"The asset '"+hashA+"' does not have the 3 bytes that the upload session was told of'")
	}
	w.uploadRaw(begun.JWT, "?base64=true", part{hashA, "text/html", "%%%%"}).fails(400, 10012, upload+"The asset '"+hashA+"' is not base64'")
	w.uploadRaw(begun.JWT, "?base64=true", part{hashA, "text/html", "PGE"}).fails(400, 10012, upload+"The request body ended early; nothing was stored'")
	w.upload(begun.JWT, part{hashA, strings.Repeat("x", catalog.MaxAssetTypeBytes+1), "<a>"}).fails(400, 10012, upload+"The content type of the asset '"+hashA+"' has at most 256 characters of ASCII'")
	w.do(request{method: "POST", path: in("/workers/assets/upload"), body: "{}", token: begun.JWT}).
		fails(400, 10012, upload+"Assets are uploaded as multipart/form-data with a part for each file, named by its hash'")

	a := w.uploadRaw(begun.JWT, "", part{hashA, "text/html", "<a>"}, part{hashB, "x/y", "bin"}) // as SDKs may
	if a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	a.status = 200
	jwt := decode[assetSession](a).JWT
	w.send("PUT", "scripts/another", withAssets("", jwt, "")).fails(400, 10021, "The assets were uploaded for the Worker 'site'.")
	for config, want := range map[string]string{
		`"html_handling":"x"`:     `Invalid static assets: html_handling is auto-trailing-slash, force-trailing-slash, drop-trailing-slash or none, not "x".`,
		`"run_worker_first":1`:    "run_worker_first is true, false or a list of rules.",
		`"run_worker_first":true`: "Invalid static assets: run_worker_first is for a Worker with code.",
	} {
		w.send("PUT", "scripts/site", withAssets("", jwt, config)).fails(400, 10021, want)
	}
	w.send("PUT", "scripts/site", withAssets("", jwt, `"_redirects":"/* /index.html 200"`)).fails(400, codeAssetRedirects,
		"Invalid _redirects configuration:\nLine 1: Infinite loop detected in this rule. This would cause a redirect to strip `.html` or `/index` and end up triggering this rule again.")
	w.at("GET", "scripts/site").fails(404, 10007, notOnAccount)
}

// TestAssetBuckets: forms are as large as they may be, and no larger.
func TestAssetBuckets(t *testing.T) {
	files, hashes := catalog.AssetSet{}, []string{}
	add := func(n int, size int64) {
		for range n {
			hash := fmt.Sprintf("%032x", len(hashes))
			files["/"+hash] = catalog.Asset{Hash: hash, Size: size}
			hashes = append(hashes, hash)
		}
	}
	add(bucketFiles+1, 1) // one too many
	add(1, bucketBytes-1) // fits beside that one
	add(1, 1)             // no longer
	add(1, bucketBytes)   // alone
	add(1, 3*bucketBytes) // as well
	add(2, bucketBytes/2) // together
	var sizes []int
	for _, b := range buckets(files, hashes) {
		sizes = append(sizes, len(b))
	}
	if want := []int{bucketFiles, 2, 1, 1, 1, 2}; !slices.Equal(sizes, want) {
		t.Errorf("%d, want %d", sizes, want)
	}
	if none := buckets(files, nil); none == nil || len(none) != 0 {
		t.Errorf("%v", none)
	}
}

// TestAssetUploadSizes: the largest file in base64, and forms past the limit.
func TestAssetUploadSizes(t *testing.T) {
	w := newWorkersWorld(t)
	list := func(n int) string { return fmt.Sprintf(`{"manifest":{"/a":{"hash":%q,"size":%d}}}`, hashA, n) }
	begun := w.session("site", list(catalog.MaxAssetBytes))
	if a := w.upload(begun.JWT, part{hashA, "x/y", strings.Repeat("x", catalog.MaxAssetBytes)}); a.status != 201 {
		t.Errorf("%d %.200s", a.status, a.body)
	}
	w.upload(begun.JWT, part{hashA, "x/y", strings.Repeat("x", catalog.MaxAssetBytes+1)}).
		fails(400, 10012, "upload assets: 'The asset '"+hashA+"' does not have the 26214400 bytes that the upload session was told of'")
	w.upload(begun.JWT, part{hashA, "x/y", strings.Repeat("x", catalog.MaxAssetBytes+4<<20)}).
		fails(413, 10012, fmt.Sprintf("An upload of assets has at most %d bytes. An asset has at most 25 MiB.", assetFormBytes))
	pad := func(n int) string { return list(1) + strings.Repeat(" ", n-len(list(1))) }
	w.session("site", pad(maxAssetListBytes))
	w.at("POST", "scripts/site/assets-upload-session", pad(maxAssetListBytes+1)).
		fails(413, 10012, fmt.Sprintf("A list of assets has at most %d bytes, this one has %d.", maxAssetListBytes, maxAssetListBytes+1))
}

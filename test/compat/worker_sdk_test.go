package compat

import (
	"encoding/base64"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	cloudflarev0 "github.com/cloudflare/cloudflare-go"
	cloudflare "github.com/cloudflare/cloudflare-go/v6"
	"github.com/cloudflare/cloudflare-go/v6/option"
	"github.com/cloudflare/cloudflare-go/v6/workers"
)

// subdomainOn has a Worker answer under the account's subdomain: SDKs upload, and do
// no more.
func subdomainOn(t *testing.T, name string) {
	t.Helper()
	s := shared.server
	_, err := s.call(t.Context(), http.MethodPost, "/accounts/"+s.account+"/workers/scripts/"+name+"/subdomain", js{"enabled": true})
	check(t, err)
}

// moduleFile is a file of the SDK for Go.
type moduleFile struct {
	io.Reader
	name string
}

func (f moduleFile) Filename() string    { return f.name }
func (f moduleFile) Name() string        { return f.name }
func (f moduleFile) ContentType() string { return "application/javascript+module" }

// TestWorkerGoV6: upload, list, settings, content, delete.
func TestWorkerGoV6(t *testing.T) {
	t.Parallel()
	ctx, s, name := t.Context(), shared.server, "worker-go-v6"
	account := cloudflare.F(s.account)
	client := workers.NewScriptService(option.WithBaseURL(s.base), option.WithAPIToken(s.token))
	res, err := client.Update(ctx, name, workers.ScriptUpdateParams{
		AccountID: account,
		Metadata: cloudflare.F(workers.ScriptUpdateParamsMetadata{
			MainModule: cloudflare.F("src/index.mjs"), CompatibilityDate: cloudflare.F("2026-01-01"),
			Bindings: cloudflare.F([]workers.ScriptUpdateParamsMetadataBindingUnion{
				workers.ScriptUpdateParamsMetadataBindingsWorkersBindingKindPlainText{
					Name: cloudflare.F("VAR"), Text: cloudflare.F("v"),
					Type: cloudflare.F(workers.ScriptUpdateParamsMetadataBindingsWorkersBindingKindPlainTextTypePlainText),
				},
			}),
		}),
		Files: cloudflare.F([]io.Reader{moduleFile{strings.NewReader(answering("go")), "src/index.mjs"}}),
	})
	check(t, err)
	if res.ID != name || !slices.Contains(res.Handlers, "fetch") {
		t.Errorf("upload: %+v", res)
	}
	subdomainOn(t, name)
	serves(t, hostOf(name), "go v")
	found := false
	pager := client.ListAutoPaging(ctx, workers.ScriptListParams{AccountID: account})
	for pager.Next() {
		found = found || pager.Current().ID == name
	}
	check(t, pager.Err())
	if !found {
		t.Error("the Worker is not in the list")
	}
	_, err = client.Secrets.Update(ctx, name, workers.ScriptSecretUpdateParams{AccountID: account, Body: workers.ScriptSecretUpdateParamsBodyWorkersBindingKindSecretText{
		Name: cloudflare.F("A"), Text: cloudflare.F("a"), Type: cloudflare.F(workers.ScriptSecretUpdateParamsBodyWorkersBindingKindSecretTextTypeSecretText)}})
	check(t, err)
	serves(t, hostOf(name), "go a v")
	_, err = client.Delete(ctx, name, workers.ScriptDeleteParams{AccountID: account})
	check(t, err)
	_, err = client.Delete(ctx, name, workers.ScriptDeleteParams{AccountID: account})
	check(t, wantV6Error(err, http.StatusNotFound, 10007))
}

// TestWorkerGoV0: a script without a form, modules, list and delete.
func TestWorkerGoV0(t *testing.T) {
	t.Parallel()
	ctx, s, name := t.Context(), shared.server, "worker-go-v0"
	api, account := newGoV0(t, s.endpoint), cloudflarev0.AccountIdentifier(s.account)
	script := `addEventListener("fetch", (event) => event.respondWith(new Response("script")))`
	_, err := api.UploadWorker(ctx, account, cloudflarev0.CreateWorkerParams{ScriptName: name, Script: script})
	check(t, err)
	subdomainOn(t, name)
	serves(t, hostOf(name), "script")
	content, err := api.GetWorkersScriptContent(ctx, account, name)
	check(t, err)
	if !strings.Contains(content, script) {
		t.Errorf("content %q", content)
	}
	_, err = api.UploadWorker(ctx, account, cloudflarev0.CreateWorkerParams{ScriptName: name, Script: answering("module"), Module: true,
		CompatibilityDate: "2026-01-01", Bindings: map[string]cloudflarev0.WorkerBinding{"VAR": cloudflarev0.WorkerPlainTextBinding{Text: "v"}}})
	check(t, err)
	serves(t, hostOf(name), "module v")
	list, _, err := api.ListWorkers(ctx, account, cloudflarev0.ListWorkersParams{})
	check(t, err)
	if !slices.ContainsFunc(list.WorkerList, func(w cloudflarev0.WorkerMetaData) bool { return w.ID == name }) {
		t.Errorf("the Worker is not in the list %+v", list.WorkerList)
	}
	check(t, api.DeleteWorker(ctx, account, cloudflarev0.DeleteWorkerParams{ScriptName: name}))
}

// TestWorkerTypescript: upload with metadata that the SDK sends field by field,
// secrets, list, content, delete.
func TestWorkerTypescript(t *testing.T) {
	t.Parallel()
	s, name := shared.server, "worker-typescript"
	sdk, account := newTypescript(t, s.endpoint), js{"account_id": s.account}
	var made struct{ ID string }
	check(t, sdk.call("workers.scripts.update", &made, name, js{"account_id": s.account,
		"metadata": js{"main_module": "index.mjs", "compatibility_date": "2026-01-01", "limits": js{"cpu_ms": 50}, "logpush": true,
			"bindings": []js{{"type": "plain_text", "name": "VAR", "text": "v"}, {"type": "secret_text", "name": "A", "text": "a"}}},
		"files": []js{{"$file": base64.StdEncoding.EncodeToString([]byte(answering("typescript"))), "name": "index.mjs", "type": "application/javascript+module"}}}))
	subdomainOn(t, name)
	serves(t, hostOf(name), "typescript a v")
	var list []struct{ ID string }
	check(t, sdk.all("workers.scripts.list", &list, account))
	if !slices.ContainsFunc(list, func(w struct{ ID string }) bool { return w.ID == name }) {
		t.Errorf("the Worker is not in the list %+v", list)
	}
	check(t, sdk.call("workers.scripts.secrets.update", nil, name, js{"account_id": s.account, "name": "B", "text": "b", "type": "secret_text"}))
	serves(t, hostOf(name), "typescript a b v")
	check(t, sdk.call("workers.scripts.delete", nil, name, account))
	check(t, wantThrown(sdk.call("workers.scripts.delete", nil, name, account), "NotFoundError", 10007))
}

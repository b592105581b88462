package rest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

const secretText = "what-nobody-may-see-0123456789"

// TestSecrets: each way to set and to take away a secret; every one makes a version
// that is tried out with it, and its text is in no answer, log or record.
func TestSecrets(t *testing.T) {
	w := newWorkersWorld(t)
	var said strings.Builder
	keep := func(a answer) answer {
		said.WriteString(a.body)
		return a
	}
	put := func(name, text string) answer {
		return keep(w.at("PUT", "scripts/a/secrets", `{"name":"`+name+`","text":"`+text+`","type":"secret_text"}`))
	}
	put("S", secretText).fails(404, 10007, notOnAccount)
	w.deploy("a", `{"name":"VAR","type":"plain_text","text":"v"},{"name":"KV","type":"kv_namespace","namespace_id":"`+w.ns.ID.String()+`"}`)
	put("S", secretText).is(`{"name":"S","type":"secret_text"}`)
	if got := w.last().Secrets; got["S"] != secretText {
		t.Errorf("tried out with %v", got)
	}
	put("VAR", secretText).fails(400, 10053, "Binding name 'VAR' already in use. Please use a different name and try again.")
	keep(w.at("GET", "scripts/a/secrets")).is(`[{"name":"S","type":"secret_text"}]`)
	keep(w.at("GET", "scripts/a/secrets/S")).is(`{"name":"S","type":"secret_text"}`)
	keep(w.at("GET", "scripts/a/secrets/T")).fails(404, 10056, "Secret binding 'T' not found.")
	want := func(step string, want ...string) {
		t.Helper()
		var settings struct{ Bindings []shownBinding }
		keep(w.at("GET", "scripts/a/settings")).result(&settings)
		if got := names(settings.Bindings); !slices.Equal(got, want) {
			t.Errorf("%s: bindings %v, want %v", step, got, want)
		}
		if slices.Contains(want, "S:secret_text") && w.last().Secrets["S"] != secretText {
			t.Errorf("%s: tried out with %v", step, w.last().Secrets)
		}
	}
	// wrangler 4.86 does not ask for secrets to be kept, the newer one does.
	keep(w.send("PUT", "scripts/a?bindings_inherit=strict", metadata(""), hello)).ok()
	want("deploy", "S:secret_text")
	keep(w.send("POST", "scripts/a/versions", part{"metadata", "", `{"main_module":"index.js","keep_bindings":["secret_text","secret_key"],"bindings":[{"name":"VAR","type":"plain_text","text":"v"}]}`}, hello)).ok()
	want("version", "S:secret_text", "VAR:plain_text")
	put("T", "t").fails(400, 10215, "Secret edit failed. You attempted to modify a secret, but the latest version of your Worker isn't currently deployed.")
	settings := func(text string) answer {
		return keep(w.send("PATCH", "scripts/a/settings", part{"settings", "", text}))
	}
	settings(`{"bindings":[]}`).fails(400, 10214, "Script edit failed. You attempted to deploy the latest version with modified settings, but the latest version isn't currently deployed.")
	keep(w.send("PUT", "scripts/a", part{"metadata", "", `{"main_module":"index.js","keep_bindings":["plain_text"]}`}, hello)).ok()
	want("keep_vars", "S:secret_text", "VAR:plain_text")

	// secret bulk, as 4.86 and as 4.164 send it.
	settings(`{"bindings":[{"type":"plain_text","name":"VAR"},{"type":"secret_text","name":"S"},{"type":"secret_text","name":"A","text":"1"}]}`).ok()
	want("bulk", "A:secret_text", "S:secret_text", "VAR:plain_text")
	settings(`{"bindings":[{"type":"plain_text","name":"S"}]}`).fails(400, 10057, "Binding S cannot be inherited: the Worker's current version has no such binding.")
	keep(w.at("PATCH", "scripts/a/secrets-bulk", `{"secrets":{"B":{"name":"B","text":"2","type":"secret_text"},"A":null,"none":null}}`)).ok()
	want("newer bulk", "B:secret_text", "S:secret_text", "VAR:plain_text")
	settings(`{"compatibility_date":"2025-02-02","limits":{"cpu_ms":50},"tags":["x"]}`).ok()
	want("settings", "B:secret_text", "S:secret_text", "VAR:plain_text")
	if v := w.serving("a"); v.Manifest.CompatibilityDate != "2025-02-02" || v.Manifest.CPUMillis != 50 {
		t.Errorf("manifest %+v", v.Manifest)
	}
	settings(`{"compatibility_date":"2999-02-02"}`).fails(400, 10021, "Can't set compatibility date in the future: 2999-02-02")

	keep(w.at("DELETE", "scripts/a/secrets/B?url_encoded=true")).is("null")
	keep(w.at("DELETE", "scripts/a/secrets/B?url_encoded=true")).fails(404, 10056, "Secret binding 'B' not found.")
	keep(w.at("DELETE", "scripts/a/secrets/VAR")).fails(404, 10056, "Secret binding 'VAR' not found.")
	want("delete", "S:secret_text", "VAR:plain_text")

	// An inherited secret under another name, and versions secret put of 4.164.
	keep(w.send("PUT", "scripts/a", metadata(`{"name":"R","type":"inherit","old_name":"S"},{"name":"S","type":"plain_text","text":"now a variable"}`), hello)).ok()
	if got := w.last().Secrets; len(got) != 1 || got["R"] != secretText {
		t.Errorf("tried out with %v", got)
	}
	serving := w.serving("a").ID
	v := decode[shownVersion](keep(w.at("PATCH", "workers/a/versions/latest", `{"env":{"VS":{"type":"secret_text","text":"`+secretText+`"},"R":null},"annotations":{"workers/message":"m"}}`)))
	if got := names(v.Resources.Bindings); !slices.Equal(got, []string{"S:plain_text", "VS:secret_text"}) || w.serving("a").ID != serving || v.Annotations["workers/message"] != "m" {
		t.Errorf("version %+v", v)
	}

	if text := said.String() + w.log.String(); strings.Contains(text, secretText) {
		t.Error("the text of a secret is in an answer or in the log")
	}
	latest, err := w.catalog.LatestVersion(t.Context(), accountID, "a")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(fmt.Sprintf("%+v", latest), secretText) {
		t.Error("the text of a secret is in the manifest")
	}
}

// TestSecretSizes: a secret at its greatest size and one past it, and bodies that
// are none.
func TestSecretSizes(t *testing.T) {
	w := newWorkersWorld(t)
	w.deploy("a", "")
	put := func(n int) answer {
		return w.at("PUT", "scripts/a/secrets", `{"name":"S","text":"`+strings.Repeat("x", n)+`","type":"secret_text"}`)
	}
	put(MaxVariableBytes).ok()
	put(MaxVariableBytes+1).fails(400, 10021, "The value of binding S has 5121 bytes, a variable or secret has at most 5120.")
	w.at("PUT", "scripts/a/secrets", `{"name":"S"}`).fails(400, 10021, "The secret 'S' must have a text and the type secret_text.")
	w.at("PUT", "scripts/a/secrets", `{"name":"S","text":"","type":"secret_key"}`).fails(400, 10021, "The secret 'S' must have a text and the type secret_text.")
	w.at("PUT", "scripts/a/secrets", `{"text":"x"}`).fails(400, 10021, "'' cannot be the name of a binding.")
	w.at("PUT", "scripts/a/secrets", `[`).fails(400, 10012, "put secret: 'The request body is not valid JSON'")
}

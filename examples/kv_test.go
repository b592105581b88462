package examples_test

import (
	"testing"

	"github.com/nearkey/nearkey/client"
)

// namespace is a namespace of KV, seen from outside of Workers.
type namespace struct{ id string }

// newNamespace makes a namespace.
func newNamespace(t *testing.T, title string) namespace {
	t.Helper()
	ns, err := shared.kv.CreateNamespace(t.Context(), title, "")
	check(t, err)
	return namespace{ns.ID}
}

// namespaceOf is the namespace that wrangler made for a binding.
func namespaceOf(t *testing.T, title string) namespace {
	t.Helper()
	for ns, err := range shared.kv.Namespaces(t.Context()) {
		check(t, err)
		if ns.Title == title {
			return namespace{ns.ID}
		}
	}
	t.Fatalf("there is no namespace %s", title)
	return namespace{}
}

// keys are the keys with a prefix, with their metadata and expiration.
func (n namespace) keys(t *testing.T, prefix string) (all []client.Key) {
	t.Helper()
	for k, err := range shared.kv.Keys(t.Context(), n.id, prefix) {
		check(t, err)
		all = append(all, k)
	}
	return all
}

package hot

import (
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

func catalogScope(ns kv.NamespaceID, prefix string) catalog.Scope {
	return catalog.Scope{Permission: catalog.Read, Namespace: ns, Prefix: prefix}
}

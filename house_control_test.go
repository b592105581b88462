package nearkey_test

import (
	"strings"
	"testing"
)

// Each rule is shown a violation and must complain, and its lawful neighbour and
// must not: a checker that finds nothing may be a checker that looks at nothing.
func TestHouseControls(t *testing.T) {
	long := "package store\nfunc f() {\n" + strings.Repeat("\t_ = 0\n", maxFunctionLines-1) + "}\n"
	fits := "package store\nfunc f() {\n" + strings.Repeat("\t_ = 0\n", maxFunctionLines-2) + "}\n"
	const pkg = "github.com/nearkey/nearkey/"
	for _, c := range []struct {
		rule, path, text string
		bad              bool
	}{
		{"imports point down", "kv/a.go", `package kv; import "` + pkg + `store/disk"`, true},
		{"imports point down", "kv/a.go", `package kv; import "` + pkg + `internal/observe"`, true},
		{"imports point down", "kv/a.go", `package kv; import "golang.org/x/sync/errgroup"`, true},
		{"imports point down", "kv/kvtest/a.go", `package kvtest; import "` + pkg + `kv"`, false},
		{"imports point down", "store/disk/a.go", `package disk; import "` + pkg + `store/memory"`, true},
		{"imports point down", "store/disk/a_test.go", `package disk; import "` + pkg + `store/memory"`, false},
		{"imports point down", "store/disk/a_test.go", `package disk; import "` + pkg + `api/rest"`, true},
		{"imports point down", "store/disk/a.go", `package disk; import "` + pkg + `catalog"`, true},
		{"imports point down", "catalog/a.go", `package catalog; import "` + pkg + `api/rest"`, true},
		{"imports point down", "catalog/a.go", `package catalog; import "` + pkg + `internal/observe"`, false},
		{"imports point down", "wire/a.go", `package wire; import "` + pkg + `feed"`, false},
		{"imports point down", "feed/a.go", `package feed; import "` + pkg + `wire"`, true},
		{"imports point down", "edge/a.go", `package edge; import "` + pkg + `feed"`, false},
		{"imports point down", "edge/a.go", `package edge; import "` + pkg + `store/memory"`, true},
		{"imports point down", "edge/a_test.go", `package edge; import "` + pkg + `wire"`, false},
		{"imports point down", "api/rest/a.go", `package rest; import "` + pkg + `api/binding"`, true},
		{"imports point down", "api/rest/a.go", `package rest; import "` + pkg + `catalog"`, false},
		{"imports point down", "internal/observe/a.go", `package observe; import "` + pkg + `catalog"`, true},
		{"imports point down", "attic/a.go", `package attic`, true},

		{"dependencies have one importer", "store/disk/a.go", `package disk; import "github.com/cockroachdb/pebble/v2/vfs"`, false},
		{"dependencies have one importer", "catalog/a.go", `package catalog; import "github.com/cockroachdb/pebble/v2/vfs"`, true},
		{"dependencies have one importer", "store/disk/a.go", `package disk; import "github.com/cockroachdb/pebble"`, true},
		{"dependencies have one importer", "test/compat/a_test.go", `package compat; import "github.com/cloudflare/cloudflare-go/v6/kv"`, false},

		{"package comments", "feed/a.go", "// Package feed is word of changes.\n//\n// It may lose hints.\npackage feed", false},
		{"package comments", "feed/a.go", "// Package feed loses much.\n//\n// It is fine.\npackage feed", true},
		{"package comments", "feed/a.go", "package feed", true},
		{"package comments", "bench/a.go", "// Command bench measures, and has nothing to lose.\npackage main", false},

		{"no init", "feed/a.go", "package feed; func init() {}", true},
		{"no init", "feed/a.go", "package feed; type T struct{}; func (T) init() {}", false},

		{"contexts come from the caller", "feed/a.go", "package feed; var x = context.Background()", true},
		{"contexts come from the caller", "feed/a.go", "package feed; var x = context.TODO()", true},
		{"contexts come from the caller", "cmd/nearkey/a.go", "package main; var x = context.Background()", false},

		{"tests do not sleep", "feed/a_test.go", "package feed; func f() { time.Sleep(time.Millisecond) }", true},
		{"tests do not sleep", "feed/a_test.go", "package feed; func f() { for range 9 { time.Sleep(time.Millisecond) } }", true},
		{"tests do not sleep", "feed/a_test.go", "package feed; func f() { for !g() { time.Sleep(time.Second) } }", true},
		{"tests do not sleep", "feed/a_test.go", "package feed; func f() { for !g() { time.Sleep(10 * time.Millisecond) } }", false},
		{"tests do not sleep", "feed/a_test.go", "package feed; func f() { synctest.Test(t, func(t *testing.T) { time.Sleep(time.Hour) }) }", false},

		{"functions fit a screen", "feed/a.go", long, true},
		{"functions fit a screen", "feed/a.go", fits, false},

		{"interfaces are small", "feed/a.go", "package feed; type T interface { A(); B(); C(); D() }", true},
		{"interfaces are small", "feed/a.go", "package feed; type T interface { A(); B(); C() }", false},

		{"production does not import tests", "feed/a.go", `package feed; import "testing"`, true},
		{"production does not import tests", "feed/a.go", `package feed; import "testing/synctest"`, true},
		{"production does not import tests", "kv/kvtest/a.go", `package kvtest; import "testing"`, false},

		{"mutexes name what they guard", "feed/a.go", "package feed\ntype T struct {\n\tmu sync.Mutex // guards n\n\tn int\n}", false},
		{"mutexes name what they guard", "feed/a.go", "package feed\ntype T struct {\n\tmu sync.RWMutex\n\tn int\n}", true},

		{"contexts are not stored", "feed/a.go", "package feed; type T struct { ctx context.Context }", true},
		{"contexts are not stored", "feed/a.go", "package feed; func f(ctx context.Context) {}", false},

		{"constructors start nothing", "feed/a.go", "package feed; func NewT() { go f() }", true},
		{"constructors start nothing", "feed/a.go", "package feed; func (t *T) Run() { go f() }", false},

		{"no else after return", "feed/a.go", "package feed; func f() int { if x { return 1 } else { return 2 } }", true},
		{"no else after return", "feed/a.go", "package feed; func f() int { if x { y = 1 } else { y = 2 }; return y }", false},

		{"errors say what was done", "feed/a.go", `package feed; var e = fmt.Errorf("failed to open: %w", err)`, true},
		{"errors say what was done", "feed/a.go", `package feed; var e = fmt.Errorf("open %s: %w", name, err)`, false},

		{"names mean something", "internal/util/a.go", "package util", true},
		{"names mean something", "wire/a.go", "package http", true},
		{"names mean something", "wire/a.go", "package wire; type ConnManager struct{}", true},
		{"names mean something", "wire/a.go", "package wire; type Client struct{}", false},

		{"every store runs the suite", "feed/a.go", "package feed; var _ kv.Store = (*T)(nil)", true},
		{"every store runs the suite", "feed/a.go", "package feed; func (t *T) Get(); func (t *T) Put(r kv.Record); func (t *T) List()", true},
		{"every store runs the suite", "feed/a.go", "package feed; func (t *T) Get(); func (t *T) Put(value []byte); func (t *T) List()", false},
	} {
		s, err := parseSource(c.path, c.text)
		if err != nil {
			t.Fatalf("%s: %v", c.text, err)
		}
		if complaints := rules[c.rule]([]source{s}); (len(complaints) > 0) != c.bad {
			t.Errorf("%s, %s: %.200s\ngot complaints %q, want some: %v", c.rule, c.path, c.text, complaints, c.bad)
		}
	}
}

// A store with a guard and a suite satisfies the rule.
func TestHouseControlOfSuites(t *testing.T) {
	var pair []source
	for path, text := range map[string]string{
		"feed/a.go":      "package feed; var _ kv.Store = (*T)(nil); func (t *T) Get(); func (t *T) Put(r kv.Record); func (t *T) List()",
		"feed/a_test.go": "package feed; func TestT(t *testing.T) { kvtest.Run(t, nil) }",
	} {
		s, err := parseSource(path, text)
		if err != nil {
			t.Fatal(err)
		}
		pair = append(pair, s)
	}
	if complaints := storeSuites(pair); len(complaints) > 0 {
		t.Error(complaints)
	}
}

func TestHouseControlOfText(t *testing.T) {
	for text, bad := range map[string]bool{
		"see " + "/work" + "/main":                   true,
		`"` + "/home" + `/someone"`:                  true,
		"https://registry." + "npmjs.org/x/-/x.tgz":  true,
		"/client/v4/accounts/root/work/home":         false,
		"ReadWritePaths=/var/lib/nearkey\n/workers/": false,
	} {
		if complaints := badText("a.md", text); (len(complaints) > 0) != bad {
			t.Errorf("%q: got complaints %q, want some: %v", text, complaints, bad)
		}
	}
}

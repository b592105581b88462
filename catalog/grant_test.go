package catalog

import (
	"testing"

	"github.com/nearkey/nearkey/kv"
)

func TestPermission(t *testing.T) {
	for _, p := range []Permission{Read, Write} {
		if got, err := ParsePermission(p.String()); err != nil || got != p {
			t.Errorf("%s is read as %v (%v)", p, got, err)
		}
	}
	for _, s := range []string{"", "Read", "admin", Permission(0).String(), Permission(3).String()} {
		_, err := ParsePermission(s)
		wantError(t, err, ErrInvalid)
	}
}

func TestGrant(t *testing.T) {
	const acc, other = "acc", "other"
	one, two := kv.NamespaceID{1}, kv.NamespaceID{2}
	root := Grant{Scopes: rootScopes()}
	reader := Grant{Scopes: []Scope{{AccountID: acc, Permission: Read}}}
	writer := Grant{Scopes: []Scope{{AccountID: acc, Permission: Write}}}
	inOne := Grant{Scopes: []Scope{{AccountID: acc, Permission: Write, Namespace: one}}}
	images := Grant{Scopes: []Scope{{AccountID: acc, Permission: Read, Namespace: one, Prefix: "img/"}}}
	mixed := Grant{Scopes: []Scope{{AccountID: acc, Permission: Read}, {AccountID: acc, Permission: Write, Namespace: two, Prefix: "w/"}}}
	odd := Grant{Scopes: []Scope{{AccountID: acc, Permission: Write, Prefix: "img/"}}}

	for name, tc := range map[string]struct{ got, want bool }{
		"nothing: account":               {Grant{}.Account(acc, Read), false},
		"nothing: sees":                  {Grant{}.SeesAccount(acc), false},
		"nothing: no account":            {Grant{}.SeesAccount(""), false},
		"nothing: key":                   {Grant{}.Key("", kv.NamespaceID{}, "", Read), false},
		"root: account":                  {root.Account(acc, Write), true},
		"root: key":                      {root.Key(other, two, "k", Write), true},
		"root: sees":                     {root.SeesAccount(other), true},
		"root: no permission":            {root.Account(acc, 0), false},
		"reader: read":                   {reader.Account(acc, Read), true},
		"reader: write":                  {reader.Account(acc, Write), false},
		"reader: other account":          {reader.Account(other, Read), false},
		"reader: key":                    {reader.Key(acc, one, "k", Read), true},
		"reader: write key":              {reader.Key(acc, one, "k", Write), false},
		"reader: key of other account":   {reader.Key(other, one, "k", Read), false},
		"reader: sees":                   {reader.SeesAccount(acc), true},
		"reader: sees other":             {reader.SeesAccount(other), false},
		"reader: sees no account":        {reader.SeesAccount(""), false},
		"writer: reads":                  {writer.Account(acc, Read), true},
		"writer: namespace":              {writer.Namespace(acc, two, Write), true},
		"one: account":                   {inOne.Account(acc, Read), false},
		"one: sees":                      {inOne.SeesAccount(acc), true},
		"one: namespace":                 {inOne.Namespace(acc, one, Write), true},
		"one: other namespace":           {inOne.Namespace(acc, two, Read), false},
		"one: other account":             {inOne.Namespace(other, one, Read), false},
		"one: key":                       {inOne.Key(acc, one, "k", Write), true},
		"one: key of other":              {inOne.Key(acc, two, "k", Read), false},
		"one: list all":                  {inOne.Prefix(acc, one, "", Read), true},
		"images: namespace":              {images.Namespace(acc, one, Read), true},
		"images: write":                  {images.Namespace(acc, one, Write), false},
		"images: key":                    {images.Key(acc, one, "img/a", Read), true},
		"images: the prefix as a key":    {images.Key(acc, one, "img/", Read), true},
		"images: shorter key":            {images.Key(acc, one, "img", Read), false},
		"images: other key":              {images.Key(acc, one, "js/a", Read), false},
		"images: write key":              {images.Key(acc, one, "img/a", Write), false},
		"images: key of other namespace": {images.Key(acc, two, "img/a", Read), false},
		"images: list it":                {images.Prefix(acc, one, "img/", Read), true},
		"images: list below":             {images.Prefix(acc, one, "img/2026/", Read), true},
		"images: list all":               {images.Prefix(acc, one, "", Read), false},
		"images: list above":             {images.Prefix(acc, one, "img", Read), false},
		"mixed: write key":               {mixed.Key(acc, two, "w/a", Write), true},
		"mixed: write other key":         {mixed.Key(acc, two, "r/a", Write), false},
		"mixed: write other namespace":   {mixed.Key(acc, one, "w/a", Write), false},
		"mixed: read all":                {mixed.Prefix(acc, two, "", Read), true},
		"mixed: write account":           {mixed.Account(acc, Write), false},
		"odd: account":                   {odd.Account(acc, Write), false},
		"odd: other key":                 {odd.Key(acc, one, "k", Write), false},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %t, want %t", name, tc.got, tc.want)
		}
	}
}

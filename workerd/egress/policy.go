package egress

import (
	"net/netip"
	"slices"
	"strings"
)

// policy is what may be reached.
type policy struct {
	kind       Policy
	allow      []netip.Prefix
	allowHosts []string
	denyHosts  []string
}

// reserved are the ranges that are not the public internet's, or that reach another
// range in disguise, beside those that netip knows.
var reserved = parseAll(
	"0.0.0.0/8",       // this network: Linux takes it for this machine
	"100.64.0.0/10",   // carriers' NAT
	"192.0.0.0/24",    // protocol assignments
	"192.0.2.0/24",    // documentation
	"192.88.99.0/24",  // relays of 6to4
	"198.18.0.0/15",   // benchmarks
	"198.51.100.0/24", // documentation
	"203.0.113.0/24",  // documentation
	"240.0.0.0/4",     // reserved, and broadcast
	"2001::/23",       // protocol assignments, Teredo
	"2001:db8::/32",   // documentation
	"2002::/16",       // 6to4: an IPv4 address within
	"3fff::/20",       // documentation
)

var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96") // an IPv4 address within, reached through NAT64
	globalIPv6 = netip.MustParsePrefix("2000::/3")     // all that was ever given out
)

func parseAll(texts ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		all[i] = netip.MustParsePrefix(text)
	}
	return all
}

// plainAddr takes the disguises off an address: IPv4 within IPv6, and zones.
func plainAddr(a netip.Addr) netip.Addr {
	a = a.WithZone("").Unmap()
	if nat64.Contains(a) {
		b := a.As16()
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return a
}

// plainPrefixes takes the disguises off ranges: addresses are compared without theirs.
func plainPrefixes(list []netip.Prefix) []netip.Prefix {
	all := make([]netip.Prefix, len(list))
	for i, p := range list {
		all[i] = p
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			all[i] = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
	}
	return all
}

// kindOf tells what is not public about an address; empty: nothing.
func kindOf(a netip.Addr) string {
	switch a = plainAddr(a); {
	case !a.IsValid():
		return "invalid"
	case a.IsUnspecified():
		return "unspecified"
	case a.IsLoopback():
		return "loopback"
	case a.IsPrivate():
		return "private"
	case a.IsLinkLocalUnicast():
		return "link-local"
	case a.IsMulticast():
		return "multicast"
	case a.Is6() && !globalIPv6.Contains(a), slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(a) }):
		return "reserved"
	}
	return ""
}

// refuse tells why an address may not be reached; nil: it may.
func (p *policy) refuse(a netip.Addr) *deniedError {
	a = plainAddr(a)
	if p.kind == All || slices.ContainsFunc(p.allow, func(allowed netip.Prefix) bool { return allowed.Contains(a) }) {
		return nil
	}
	if kind := kindOf(a); kind != "" {
		return &deniedError{kind: kind}
	}
	if p.kind == None {
		return &deniedError{kind: "public"}
	}
	return nil
}

// named reports whether a list names a host, itself or all below a name.
func named(list []string, host string) bool {
	return slices.ContainsFunc(list, func(name string) bool {
		name = strings.TrimSuffix(name, ".")
		if suffix, ok := strings.CutPrefix(name, "*"); ok {
			return len(host) > len(suffix) && strings.EqualFold(host[len(host)-len(suffix):], suffix)
		}
		return strings.EqualFold(name, host)
	})
}

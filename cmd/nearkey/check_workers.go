package main

import (
	"net"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
)

// What Workers may reach beside their bindings.
const (
	egressPublic = "public"
	egressNone   = "none"
	egressAll    = "all"
)

// workersOff is the address of Workers that do not answer.
const workersOff = "off"

// The bounds of what may be configured of Workers.
const (
	minHeap        = 16 << 20
	minProcess     = 64 << 20
	minWorkerCPU   = 10 * time.Millisecond
	maxProcesses   = 10_000
	maxOrigins     = 1000
	maxAllowed     = 1000
	maxDomainBytes = 200
)

// runsWorkers reports whether the process runs Workers. A centre does even if none
// answers there: it tries what is deployed, and fires crons.
func (c *Config) runsWorkers() bool {
	centre := c.Fleet.Role == roleSingle || c.Fleet.Role == roleCentral
	return c.workersListen() != "" || centre && c.Workers.Listen != workersOff
}

// workersListen is where Workers answer; empty: nowhere.
func (c *Config) workersListen() string {
	switch c.Workers.Listen {
	case workersOff:
		return ""
	case "":
	default:
		return c.Workers.Listen
	}
	host, port, err := net.SplitHostPort(c.Listen)
	n, notNumber := strconv.Atoi(port)
	if c.Fleet.Role != roleSingle || err != nil || notNumber != nil || n == 1<<16-1 {
		return ""
	}
	if n != 0 {
		n++
	}
	return net.JoinHostPort(host, strconv.Itoa(n))
}

func (c *Config) checkWorkers(fault faulter) {
	w := &c.Workers
	role := c.Fleet.Role
	if w.Listen != "" && w.Listen != workersOff {
		switch _, port, err := net.SplitHostPort(w.Listen); {
		case role == roleRegional || role == roleProxy:
			fault("workers.listen", "the role %s runs no Workers", role)
		case err != nil:
			fault("workers.listen", "%w; want host:port, such as 127.0.0.1:8791, or off", err)
		default:
			if n, err := strconv.ParseUint(port, 10, 16); err != nil {
				fault("workers.listen", "port %q: want a number from 0 (any) to 65535, not %d", port, n)
			} else if n != 0 && w.Listen == c.Listen {
				fault("workers.listen", "%s is the address of the API, too; choose another port", w.Listen)
			}
		}
	}
	if !isDomain(w.Domain) {
		fault("workers.domain", "%q: want a domain, such as workers.localhost", w.Domain)
	}
	if w.Egress != egressPublic && w.Egress != egressNone && w.Egress != egressAll {
		choices := []string{egressPublic, egressNone, egressAll}
		fault("workers.egress", "%q: want one of %q%s", w.Egress, choices, didYouMean(w.Egress, choices))
	}
	if _, _, err := w.allowed(); err != nil {
		fault("workers.egress_allow", "%w", err)
	}
	sized := func(key string, value, least, most Size) {
		if value < least || value > most {
			fault("workers."+key, "%s: want %s to %s", sizeText(value), sizeText(least), sizeText(most))
		}
	}
	sized("heap_bytes", w.HeapBytes, minHeap, 16<<30)
	sized("process_bytes", w.ProcessBytes, minProcess, 64<<30)
	sized("cache_bytes", w.CacheBytes, 0, 1<<40)
	if n := w.Processes; n < 1 || n > maxProcesses {
		fault("workers.processes", "%d: want 1 to %d", n, maxProcesses)
	}
	if d := time.Duration(w.CPU); d < minWorkerCPU || d > time.Hour {
		fault("workers.cpu", "%s: want %s to 1h", d, minWorkerCPU)
	}
	if d := time.Duration(w.Idle); d < time.Second || d > 30*day {
		fault("workers.idle", "%s: want 1s to 30d", d)
	}
	c.checkOrigins(fault)
}

func (c *Config) checkOrigins(fault faulter) {
	if len(c.Origins) > maxOrigins {
		fault("origin", "%d origins; want at most %d", len(c.Origins), maxOrigins)
	}
	seen := map[string]bool{}
	for _, o := range c.Origins {
		host := strings.ToLower(o.Host)
		if !isDomain(strings.TrimPrefix(host, "*.")) {
			fault("origin.host", "%q: want a host, such as example.com or *.example.com", o.Host)
		}
		if seen[host] {
			fault("origin.host", "%q is named twice", o.Host)
		}
		seen[host] = true
		u, err := url.Parse(o.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || path.Clean("/"+u.Path) != "/" || u.RawQuery != "" || u.User != nil {
			fault("origin.url", "of %q: %q: want http://HOST:PORT or https://HOST:PORT", o.Host, o.URL)
		}
	}
}

// isDomain reports whether a text is a name of a host.
func isDomain(text string) bool {
	if text == "" || len(text) > maxDomainBytes {
		return false
	}
	for label := range strings.SplitSeq(text, ".") {
		if label == "" || len(label) > 63 || strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// allowed are the ranges and hosts of egress_allow.
func (w *WorkersConfig) allowed() (ranges []netip.Prefix, hosts []string, err error) {
	for text := range strings.SplitSeq(w.EgressAllow, ",") {
		text = strings.ToLower(strings.TrimSpace(text))
		if text == "" {
			continue
		}
		if prefix, err := netip.ParsePrefix(text); err == nil {
			ranges = append(ranges, prefix)
			continue
		}
		if address, err := netip.ParseAddr(text); err == nil {
			ranges = append(ranges, netip.PrefixFrom(address, address.BitLen()))
			continue
		}
		if !isDomain(strings.TrimPrefix(text, "*.")) {
			return nil, nil, &badAllowed{text}
		}
		hosts = append(hosts, text)
	}
	if len(ranges)+len(hosts) > maxAllowed {
		return nil, nil, &badAllowed{"more than " + strconv.Itoa(maxAllowed) + " of them"}
	}
	return ranges, hosts, nil
}

// badAllowed is an element of egress_allow that is none.
type badAllowed struct{ text string }

func (b *badAllowed) Error() string {
	return strconv.Quote(b.text) + ": want addresses, ranges and hosts, such as 10.1.2.3, 10.0.0.0/8, api.internal or *.internal"
}

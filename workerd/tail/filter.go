package tail

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
)

// The bounds of filters.
const (
	MaxFilters      = 20  // of a tail
	MaxFilterValues = 100 // of a filter
)

// A filter is a condition on events, in the words of the API: exactly one field
// is set. Of several values one must fit.
type filter struct {
	SamplingRate *float64  `json:"sampling_rate,omitempty"`
	Outcome      []string  `json:"outcome,omitempty"`
	Method       []string  `json:"method,omitempty"`
	Header       *header   `json:"header,omitempty"`
	ClientIP     []string  `json:"client_ip,omitempty"`
	Query        *string   `json:"query,omitempty"`
	Version      *string   `json:"scriptVersion,omitempty"`
	ips          []address // of ClientIP
}

// header asks for a header field, and for a text in its value if there is one.
type header struct {
	Key   string `json:"key"`
	Query string `json:"query,omitempty"`
}

type address = netip.Addr

// filters are conditions that must all hold.
type filters []filter

// self stands for the address of who opens the tail.
const self = "self"

// parseFilters reads filters as they are sent and stored. What it refuses says
// what is allowed.
func parseFilters(sent json.RawMessage) (filters, error) {
	if len(sent) == 0 {
		return nil, nil
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(sent, &parts); err != nil {
		return nil, errors.New("filters must be a list")
	}
	if len(parts) > MaxFilters {
		return nil, fmt.Errorf("%d filters, at most %d are allowed", len(parts), MaxFilters)
	}
	all := make(filters, len(parts))
	for i, part := range parts {
		if err := all[i].parse(part); err != nil {
			return nil, fmt.Errorf("filter %d: %w", i+1, err)
		}
	}
	return all, nil
}

func (f *filter) parse(part json.RawMessage) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(part, &fields); err != nil || len(fields) != 1 {
		return errors.New("want an object with one field")
	}
	if err := json.Unmarshal(part, f); err != nil {
		return errors.New("its value is of the wrong type")
	}
	most := max(len(f.Outcome), len(f.Method), len(f.ClientIP))
	switch {
	case most > MaxFilterValues:
		return fmt.Errorf("%d values, at most %d are allowed", most, MaxFilterValues)
	case f.SamplingRate != nil && !(*f.SamplingRate > 0 && *f.SamplingRate <= 1):
		return errors.New("sampling_rate must be greater than 0, and at most 1")
	case f.Header != nil && f.Header.Key == "":
		return errors.New("header needs a key")
	case f.ClientIP != nil:
		return f.parseIPs()
	case f.SamplingRate == nil && f.Outcome == nil && f.Method == nil && f.Header == nil && f.Query == nil && f.Version == nil:
		return errors.New("want one of sampling_rate, outcome, method, header, client_ip, query, scriptVersion")
	}
	return nil
}

func (f *filter) parseIPs() error {
	f.ips = nil
	for _, text := range f.ClientIP {
		if text == self {
			continue
		}
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("client_ip: %q is no IP address", text[:min(len(text), 64)])
		}
		f.ips = append(f.ips, ip.Unmap())
	}
	return nil
}

// name puts an address in the place of self.
func (all filters) name(ip string) {
	for i := range all {
		for j, text := range all[i].ClientIP {
			if text == self {
				all[i].ClientIP[j] = ip
			}
		}
	}
}

// event is what filters look at.
type event struct {
	Outcome string `json:"outcome"`
	Version struct {
		ID string `json:"id"`
	} `json:"scriptVersion"`
	Logs []struct {
		Message json.RawMessage `json:"message"`
	} `json:"logs"`
	Event struct {
		Request struct {
			Method  string            `json:"method"`
			Headers map[string]string `json:"headers"`
		} `json:"request"`
	} `json:"event"`
}

// match reports whether all conditions hold. An event that cannot be read meets
// no condition.
func (all filters) match(text json.RawMessage) bool {
	if len(all) == 0 {
		return true
	}
	var e event
	if err := json.Unmarshal(text, &e); err != nil {
		return false
	}
	return !slices.ContainsFunc(all, func(f filter) bool { return !f.match(&e) })
}

func (f *filter) match(e *event) bool {
	switch {
	case f.SamplingRate != nil:
		return rand.Float64() < *f.SamplingRate
	case f.Outcome != nil:
		return slices.Contains(f.Outcome, e.Outcome)
	case f.Method != nil:
		method := e.Event.Request.Method
		return method != "" && slices.ContainsFunc(f.Method, func(m string) bool { return strings.EqualFold(m, method) })
	case f.Header != nil:
		value, ok := e.header(f.Header.Key)
		return ok && strings.Contains(value, f.Header.Query)
	case f.ClientIP != nil:
		value, _ := e.header("cf-connecting-ip")
		ip, err := netip.ParseAddr(value)
		return err == nil && slices.Contains(f.ips, ip.Unmap())
	case f.Query != nil:
		return e.says(*f.Query)
	case f.Version != nil:
		return e.Version.ID == *f.Version
	}
	return false
}

func (e *event) header(name string) (value string, ok bool) {
	for key, value := range e.Event.Request.Headers {
		if strings.EqualFold(key, name) {
			return value, true
		}
	}
	return "", false
}

// says reports whether a text is in what was logged: in a text as it is, in
// anything else as JSON.
func (e *event) says(text string) bool {
	for _, line := range e.Logs {
		var parts []json.RawMessage
		if json.Unmarshal(line.Message, &parts) != nil {
			parts = []json.RawMessage{line.Message}
		}
		for _, part := range parts {
			var said string
			if json.Unmarshal(part, &said) != nil {
				said = string(part)
			}
			if strings.Contains(said, text) {
				return true
			}
		}
	}
	return false
}

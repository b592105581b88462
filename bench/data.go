package main

import (
	"encoding/base64"
	"encoding/hex"
)

const (
	valueBytes  = 288
	randomBytes = valueBytes / 2 // of a value; the rest compresses well
	minKeyBytes = 28
	maxKeyBytes = 60 // the mean is 44
	keyDirs     = 100_000
)

// keyspace makes the keys and values of a namespace from their number, so that
// any reader can check any value without a copy. Keys in the order of their
// numbers are in random order.
type keyspace struct {
	seed   uint64
	dirs   uint64 // keys are spread over so many prefixes dNNNNN/
	binary bool   // values that are not text
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// appendKey appends key number i: dNNNNN/ and hexadecimal digits.
func (k keyspace) appendKey(b []byte, i int) []byte {
	h := mix(k.seed + uint64(i))
	dir := h % k.dirs
	size := len(b) + minKeyBytes + int(h>>32%(maxKeyBytes-minKeyBytes+1))
	b = append(b, 'd', byte('0'+dir/10_000%10), byte('0'+dir/1000%10), byte('0'+dir/100%10), byte('0'+dir/10%10), byte('0'+dir%10), '/')
	for len(b) < size {
		h = mix(h)
		for digits := h; digits > 0 && len(b) < size; digits >>= 4 {
			b = append(b, "0123456789abcdef"[digits&15])
		}
	}
	return b
}

const filler = "the same words are in every value, as they are in pages, templates and settings that people keep; "

// appendValue appends the value of key number i.
func (k keyspace) appendValue(b []byte, i int) []byte {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	end := len(b) + valueBytes
	h := mix(^k.seed + uint64(i))
	for n := 0; n < randomBytes; n += 8 {
		h = mix(h)
		for shift := 0; shift < 64; shift += 8 {
			c := byte(h >> shift)
			if !k.binary {
				c = letters[c&63]
			}
			b = append(b, c)
		}
	}
	for len(b) < end {
		b = append(b, filler[:min(len(filler), end-len(b))]...)
	}
	return b
}

// appendPairs appends the body of a bulk write of the keys from..to-1.
func (k keyspace) appendPairs(b []byte, from, to int) []byte {
	var value []byte
	b = append(b, '[')
	for i := from; i < to; i++ {
		if i > from {
			b = append(b, ',')
		}
		b = append(b, `{"key":"`...)
		b = k.appendKey(b, i)
		b = append(b, `","value":"`...)
		if k.binary {
			value = k.appendValue(value[:0], i)
			b = base64.StdEncoding.AppendEncode(b, value)
			b = append(b, `","base64":true}`...)
		} else {
			b = k.appendValue(b, i)
			b = append(b, `"}`...)
		}
	}
	return append(b, ']')
}

// appendKeys appends the body of a bulk get of n keys that number names.
func (k keyspace) appendKeys(b []byte, n int, number func() int) []byte {
	b = append(b, `{"keys":[`...)
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = k.appendKey(b, number())
		b = append(b, '"')
	}
	return append(b, `]}`...)
}

// uniqueKey is a key that no keyspace makes.
func uniqueKey(b []byte, seed uint64) []byte {
	var raw [16]byte
	for i := range raw {
		raw[i] = byte(mix(seed+uint64(i)<<56) >> 24)
	}
	return hex.AppendEncode(append(b, "put/"...), raw[:])
}

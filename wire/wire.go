// Package wire carries kv.Store and the changefeed between processes of nearkey:
// a Handler before a store, and a Client that is that store elsewhere.
//
// # The protocol, version 1
//
// A call is an HTTP/1.1 request, POST /wire/v1/OPERATION, over TCP, TLS or a unix
// socket. Its headers:
//
//	Authorization: Bearer SECRET     the shared secret in unpadded base64url; absent if
//	                                 certificates alone prove who is who
//	Nearkey-Deadline-Ms: 1500        the caller waits no longer; the handler neither
//	Content-Length: N                always; at most MaxBodyBytes
//
// Every answer has the header Nearkey-Wire: 1; one without was given by something
// else on the way. Status 200 is success. Any other status has an error as body,
// and the status is for people and proxies: the client goes by the body.
//
// Bodies are made of these, one after the other, without padding:
//
//	uvarint    7 bits a byte, least significant first, the high bit says that more follow
//	varint     a signed number in zigzag form as a uvarint
//	bytes      uvarint length, then so many bytes
//	u8, id     1 byte; 16 bytes
//	section    uvarint length, then so many bytes of fields
//
// A later version of this protocol adds fields at the end of a section. A reader
// ignores what is left of a section after the fields that it knows, and what
// follows the last section; a field that is missing at the end of a section, if it
// was not there in version 1, is zero. So old and new understand each other. What
// cannot be said in this way becomes /wire/v2/; a handler that does not speak it
// says so (kind 12), and which it speaks.
//
//	ref      section{ namespace id, key bytes }
//	record   section{ flags u8 (1: tombstone, 2: absent; absent has no further fields),
//	                  version id, expiration varint, metadata bytes, n uvarint }, n bytes of value
//	answer   section{ age varint (ns), cache status bytes }, record
//	writer   section{ point of presence bytes, member id, count uvarint }
//	error    section{ kind uvarint, text bytes, rule bytes }
//
//	operation  request                                              answer
//	get        section{ maxAge varint (ns) }, ref                   answer
//	put        writer (count 1), ref, record                        section{}
//	list       section{ namespace id, prefix bytes, after bytes,    section{ count uvarint, more u8, last bytes },
//	           limit uvarint, maxAge varint }                       count × (section{ key bytes }, record without value)
//	getmany    section{ maxAge varint, count uvarint }, count × ref section{ n uvarint }, n × answer; the first n (at
//	                                                                least 1) of what was asked for: ask on for the rest
//	putmany    writer, count × (ref, record)                        section{}
//	forget     section{ count uvarint }, count × (ref, section{     section{}
//	           version id })
//	drop       section{ namespace id }                              section{}
//	namespaces section{ after id, limit uvarint }                   section{ count uvarint }, count × section{ namespace id }
//	feed       section{ epoch uvarint, sequence uvarint, point of   section{ subscription uvarint }, then frames
//	           presence bytes, member id }                          until the connection ends
//	ack        section{ subscription uvarint, told uvarint }        section{}
//
// A page of a listing may hold fewer keys than the limit and have more behind it,
// as anywhere in nearkey. The answer to feed is a chunked body, flushed after every
// frame:
//
//	frame    section{ 1 u8, from epoch uvarint, from sequence uvarint, to epoch uvarint,
//	                  to sequence uvarint, elapsed varint (ns), lag varint (ns), acks uvarint,
//	                  count uvarint, count × change, told uvarint, told × change }
//	       | section{ 2 u8, error }   and the end
//	change   section{ flags u8 (1: the namespace is that of the change before), namespace id unless
//	                  flagged, version id, key bytes, sequence uvarint (less the from sequence) }
//
// The kinds of error: 0 internal, 1 unavailable, 2 full, 3 overloaded, 4 version from
// the future, 5 outcome unknown, 6 unsupported, 7 cursor gone, 8 rule broken (text
// and rule), 9 the deadline has passed, 10 malformed, 11 unauthenticated, 12 version
// of the protocol, 13 the value is missing or damaged. A kind that is not known is
// internal, and an operation that is not known is unsupported.
//
// # Retries
//
// Every operation may be repeated: writes carry their version. When a connection
// fails the client repeats the call once, over a new connection. A write whose
// outcome is not known after that fails with kv.ErrUnknown, anything else with
// kv.ErrUnavailable. A sender that hangs costs the deadline, and never more.
//
// # Point of presence
//
// A write names the point of presence and the member that it comes from. The
// handler answers it when the other members know of it; see package feed.
//
// The package keeps nothing and loses, with a process, what was under way.
package wire

import (
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Bounds of what is sent and accepted.
const (
	MaxBodyBytes    = 32 << 20  // of a request: the largest record, with room for others
	MaxAnswerBytes  = 32 << 20  // of the answers to a getmany, and of a page, unless its first alone is larger
	MaxBatchKeys    = 1000      // keys in a getmany, putmany or forget; the client splits what is more
	maxSectionBytes = 128 << 10 // of a section but a frame: metadata, a key, and room for what is to come
	maxFrameBytes   = 2 << 20   // of a frame of the feed
	maxErrorText    = 1 << 10
	maxPoPBytes     = 256
	maxPrefixBytes  = kv.MaxKeyBytes
)

// Times.
const (
	DefaultTimeout = 10 * time.Second // of a call whose context sets none, and the most that one may take
	maxDeadline    = time.Minute      // the handler works on no call for longer
	writeWithin    = 2 * time.Second  // a reader of the feed that does not take a message within it is cut
	connectWithin  = 2 * time.Second
	grace          = time.Second // for an answer to be taken after the deadline
)

const (
	pathPrefix     = "/wire/"
	version        = "1"
	deadlineHeader = "Nearkey-Deadline-Ms"
	versionHeader  = "Nearkey-Wire"
	contentType    = "application/vnd.nearkey.wire"
)

// The operations.
const (
	opGet     = "get"
	opPut     = "put"
	opList    = "list"
	opGetMany = "getmany"
	opPutMany = "putmany"
	opForget  = "forget"
	opDrop    = "drop"
	opFeed    = "feed"
	opAck     = "ack"

	opNamespaces = "namespaces"
)

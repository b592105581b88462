package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// conn is one keep-alive connection of a client that costs little: the requests
// are bytes, and of an answer it reads the status, the length and the body.
type conn struct {
	net  io.ReadWriteCloser
	buf  []byte // what was read: buf[next:end] is not yet consumed
	next int
	end  int
	body []byte // of a chunked answer
}

// maxAnswerBytes bounds an answer: the greatest here is a bulk get.
const maxAnswerBytes = 64 << 20

func dial(addr string) (*conn, error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Minute)); err != nil { // of the whole connection: no timer for each request
		return nil, err
	}
	return newConn(c), nil
}

func newConn(c io.ReadWriteCloser) *conn { return &conn{net: c, buf: make([]byte, 16<<10)} }

func (c *conn) close() { c.net.Close() } // nothing is under way on it

// do sends a request and returns the status and the body of the answer, which
// is valid until the next call.
func (c *conn) do(request []byte) (status int, body []byte, err error) {
	if _, err := c.net.Write(request); err != nil {
		return 0, nil, err
	}
	head, err := c.head()
	if err != nil {
		return 0, nil, fmt.Errorf("read the head of an answer: %w", err)
	}
	status, length, chunked, err := parseHead(head)
	if err != nil {
		return 0, nil, err
	}
	switch {
	case chunked:
		body, err = c.chunks()
	case status == 204 || status == 304:
	default:
		body, err = c.take(length)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read the body of an answer: %w", err)
	}
	return status, body, nil
}

// fill reads more, behind what is not yet consumed.
func (c *conn) fill() error {
	if c.next == c.end {
		c.next, c.end = 0, 0
	}
	switch {
	case c.end < len(c.buf):
	case c.next > 0:
		c.end = copy(c.buf, c.buf[c.next:c.end])
		c.next = 0
	case len(c.buf) >= maxAnswerBytes:
		return fmt.Errorf("an answer of more than %d bytes", maxAnswerBytes)
	default:
		c.buf = append(c.buf, make([]byte, len(c.buf))...)
	}
	n, err := c.net.Read(c.buf[c.end:])
	c.end += n
	if n > 0 {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// head returns the status line and the headers, without the empty line.
func (c *conn) head() ([]byte, error) {
	for {
		if i := bytes.Index(c.buf[c.next:c.end], []byte("\r\n\r\n")); i >= 0 {
			head := c.buf[c.next : c.next+i]
			c.next += i + 4
			return head, nil
		}
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
}

// take returns the next n bytes.
func (c *conn) take(n int) ([]byte, error) {
	if n > maxAnswerBytes {
		return nil, fmt.Errorf("an answer of %d bytes", n)
	}
	for c.end-c.next < n {
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
	c.next += n
	return c.buf[c.next-n : c.next], nil
}

// line returns the next line without its end.
func (c *conn) line() ([]byte, error) {
	for {
		if i := bytes.Index(c.buf[c.next:c.end], []byte("\r\n")); i >= 0 {
			c.next += i + 2
			return c.buf[c.next-i-2 : c.next-2], nil
		}
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
}

func (c *conn) chunks() ([]byte, error) {
	c.body = c.body[:0]
	for {
		line, err := c.line()
		if err != nil {
			return nil, err
		}
		digits, _, _ := bytes.Cut(line, []byte(";"))
		size, err := strconv.ParseUint(string(digits), 16, 31)
		if err != nil {
			return nil, fmt.Errorf("size of a chunk: %w", err)
		}
		data, err := c.take(int(size) + 2)
		if err != nil {
			return nil, err
		}
		if size == 0 {
			return c.body, nil // no server here sends trailers
		}
		c.body = append(c.body, data[:size]...)
	}
}

// parseHead finds the status, and the length of the body or that it is chunked.
func parseHead(head []byte) (status, length int, chunked bool, err error) {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	if len(line) < len("HTTP/1.1 200") || string(line[:9]) != "HTTP/1.1 " {
		return 0, 0, false, fmt.Errorf("status line %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, 0, false, fmt.Errorf("status line %q", line)
	}
	length = -1
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch len(name) {
		case len("Content-Length"):
			if bytes.EqualFold(name, []byte("Content-Length")) {
				if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
					return 0, 0, false, fmt.Errorf("length of an answer: %w", err)
				}
			}
		case len("Transfer-Encoding"):
			chunked = chunked || bytes.EqualFold(name, []byte("Transfer-Encoding"))
		}
	}
	if length < 0 && !chunked && status != 204 && status != 304 {
		return 0, 0, false, errors.New("an answer without a length")
	}
	return status, length, chunked, nil
}

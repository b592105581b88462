package s3

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/s3test"
	"github.com/nearkey/nearkey/kv"
)

// each calls all methods of a bucket at once, n times, and returns their errors.
func each(ctx context.Context, b *Bucket, n int) []error {
	errs := make([]error, 4*n)
	var wg sync.WaitGroup
	for i := range n {
		name := fmt.Sprint("v1/", i)
		wg.Go(func() { errs[4*i] = b.Put(ctx, name, []byte(name)) })
		wg.Go(func() { _, errs[4*i+1] = b.Get(ctx, "kept") })
		wg.Go(func() { _, _, errs[4*i+2] = b.List(ctx, "", "", 0) })
		wg.Go(func() { errs[4*i+3] = b.Delete(ctx, []string{"absent"}) })
	}
	wg.Wait()
	return errs
}

func TestServerKilledAndRestarted(t *testing.T) {
	server := s3test.Start(t)
	b := mustOpen(t, optionsOf(server))
	mustPut(t, b, "kept", []byte("v"))
	server.Kill()
	for _, err := range each(t.Context(), b, 1) {
		if !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("a call to a dead server: %v, want ErrUnavailable", err)
		}
	}
	server.Restart()
	for _, err := range each(t.Context(), b, 1) {
		if err != nil {
			t.Errorf("a call to a server that is back: %v", err)
		}
	}
	mustHave(t, b, "kept", []byte("v"))
}

// A server that is frozen costs each call its deadline, however many there are,
// and is used again when it goes on.
func TestServerHangs(t *testing.T) {
	server := s3test.Start(t)
	opts := optionsOf(server)
	opts.Timeout, opts.MaxConns = 200*time.Millisecond, 4
	b, patient := mustOpen(t, opts), mustOpen(t, optionsOf(server))
	mustPut(t, patient, "kept", []byte("v"))
	server.Stop()
	for _, err := range each(t.Context(), b, 50) {
		if !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a call to a frozen server: %v, want ErrUnavailable", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for _, err := range each(ctx, patient, 1) {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a call with a deadline to a frozen server: %v, want that deadline", err)
		}
	}
	server.Cont()
	for _, err := range each(t.Context(), patient, 50) {
		if err != nil {
			t.Errorf("a call to a server that goes on: %v", err)
		}
	}
}

func TestDiskFull(t *testing.T) {
	if !s3test.CanFill() {
		t.Skip("only root can give a server a disk of its own")
	}
	server := s3test.StartConfig(t, s3test.Config{DiskBytes: 8 << 20})
	b := mustOpen(t, optionsOf(server))
	data := noise(1 << 20)
	var err error
	n := 0
	for ; n < 100 && err == nil; n++ {
		err = b.Put(t.Context(), fmt.Sprint("v1/", n), data)
	}
	if n < 4 || !errors.Is(err, kv.ErrFull) {
		t.Fatalf("put %d on a full disk: %v", n, err)
	}
	if _, err := b.Get(t.Context(), fmt.Sprint("v1/", n-1)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("get of what did not fit: %v", err)
	}
	for i := range n - 1 {
		mustHave(t, b, fmt.Sprint("v1/", i), data)
	}
	if err := b.Delete(t.Context(), []string{"v1/0"}); err != nil {
		t.Errorf("delete on a full disk: %v", err)
	}
	mustPut(t, b, fmt.Sprint("v1/", n-1), data[:512<<10])
}

// cutter passes connections on and cuts some of them when so many bytes have come
// back.
type cutter struct {
	to    string
	after int64
	cuts  atomic.Int64 // yet to be made
}

func (c *cutter) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, c.to)
	if err != nil {
		return nil, err
	}
	return &cutConn{Conn: conn, cutter: c}, nil
}

type cutConn struct {
	net.Conn
	cutter *cutter
	read   int64
}

func (c *cutConn) Read(p []byte) (int, error) {
	if c.read >= c.cutter.after && c.cutter.cuts.Add(-1) >= 0 {
		_ = c.Close() // that it was open is all that counts
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(p)
	c.read += int64(n)
	return n, err
}

func TestAnswerCutInTheMiddle(t *testing.T) {
	server := s3test.Start(t)
	data := noise(1 << 20)
	mustPut(t, mustOpen(t, optionsOf(server)), "k", data)
	for _, c := range []struct {
		cuts int64
		want error
	}{{1, nil}, {maxAttempts - 1, nil}, {maxAttempts, kv.ErrUnavailable}} {
		cut := &cutter{to: server.Address, after: 64 << 10}
		cut.cuts.Store(c.cuts)
		b, err := open(optionsOf(server), cut.dial)
		if err != nil {
			t.Fatal(err)
		}
		got, err := b.Get(t.Context(), "k")
		if c.want == nil && (err != nil || !bytes.Equal(got, data)) || !errors.Is(err, c.want) || cut.cuts.Load() > 0 {
			t.Errorf("get, cut %d times: %d bytes, %v", c.cuts, len(got), err)
		}
		b.Close()
	}
}

// fake answers every request in the same way.
func fake(t *testing.T, answer http.HandlerFunc) *Bucket {
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	return mustOpen(t, Options{Endpoint: server.URL, Bucket: "b", Prefix: "p", PathStyle: true})
}

// What no real server at hand can be made to answer.
func TestErrorsOfServers(t *testing.T) {
	coded := func(status int, code string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>m</Message></Error>", code)
		}
	}
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   error
	}{
		{"slow down", coded(503, "SlowDown"), kv.ErrOverloaded},
		{"too many", coded(429, "Whatever"), kv.ErrOverloaded},
		{"quota", coded(403, "QuotaExceeded"), kv.ErrFull},
		{"507", coded(507, "Whatever"), kv.ErrFull},
		{"internal", coded(500, "InternalError"), kv.ErrUnavailable},
		{"denied", coded(403, "AccessDenied"), kv.ErrUnavailable},
		{"no bucket", coded(404, "NoSuchBucket"), kv.ErrUnavailable},
		{"page of a proxy", func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "<html>not found</html>", http.StatusNotFound)
		}, kv.ErrUnavailable},
		{"elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		}, kv.ErrUnavailable},
		{"no answer", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, kv.ErrUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i, err := range each(t.Context(), fake(t, c.answer), 1) {
				if !errors.Is(err, c.want) || errors.Is(err, fs.ErrNotExist) {
					t.Errorf("call %d: %v, want %v", i, err, c.want)
				}
			}
		})
	}
	for code, want := range map[string]int{"ExistingObjectIsDirectory": maxAttempts, "SlowDown": maxAttempts, "AccessDenied": 1} {
		t.Run("attempts after "+code, func(t *testing.T) {
			asked := 0
			b := fake(t, func(w http.ResponseWriter, r *http.Request) {
				if asked++; asked < maxAttempts {
					coded(http.StatusConflict, code)(w, r)
				}
			})
			if err := b.Put(t.Context(), "k", []byte("v")); asked != want || (err == nil) != (want > 1) {
				t.Errorf("put: %v after %d attempts", err, asked)
			}
		})
	}
	t.Run("no size", func(t *testing.T) {
		b := fake(t, func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "endless")
		})
		if _, err := b.Get(t.Context(), "k"); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("get: %v", err)
		}
	})
	t.Run("some are not deleted", func(t *testing.T) {
		b := fake(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "<DeleteResult><Error><Key>p/a</Key><Code>NoSuchKey</Code></Error><Error><Key>p/b</Key><Code>AccessDenied</Code></Error></DeleteResult>")
		})
		if err := b.Delete(t.Context(), []string{"a", "b"}); !errors.Is(err, kv.ErrUnavailable) || !strings.Contains(err.Error(), "p/b") {
			t.Errorf("delete: %v", err)
		}
	})
}

// Who sweeps relies on the order of a listing, so a server that has another is
// refused.
func TestListings(t *testing.T) {
	type contents struct {
		Key  string
		Size int
	}
	type result struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		Contents              []contents
		IsTruncated           bool
		NextContinuationToken string
	}
	for _, c := range []struct {
		name  string
		pages [][]string
		want  string
		err   error
	}{
		{"in order", [][]string{{"p/a", "p/b"}}, "a b", nil},
		{"empty pages first", [][]string{{}, {}, {"p/a"}}, "a", nil},
		{"out of order", [][]string{{"p/b", "p/a"}}, "", kv.ErrUnsupported},
		{"twice", [][]string{{"p/a", "p/a"}}, "", kv.ErrUnsupported},
		{"of someone else", [][]string{{"q/a"}}, "", kv.ErrUnsupported},
		{"empty pages without an end", make([][]string, maxEmptyPages+1), "", kv.ErrUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := 0
			b := fake(t, func(w http.ResponseWriter, r *http.Request) {
				page := result{IsTruncated: asked < len(c.pages)-1, NextContinuationToken: fmt.Sprint(asked + 1)}
				if got := r.URL.Query().Get("continuation-token"); asked > 0 && got != fmt.Sprint(asked) {
					t.Errorf("page %d is asked for with token %q", asked, got)
				}
				for _, key := range c.pages[asked] {
					page.Contents = append(page.Contents, contents{key, 1})
				}
				asked++
				if err := xml.NewEncoder(w).Encode(page); err != nil {
					t.Error(err)
				}
			})
			infos, more, err := b.List(t.Context(), "", "", 0)
			var names []string
			for _, info := range infos {
				names = append(names, info.Name)
			}
			if strings.Join(names, " ") != c.want || more || !errors.Is(err, c.err) {
				t.Errorf("list: %v, more %v, %v", names, more, err)
			}
		})
	}
}

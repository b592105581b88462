package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/nearkey/nearkey/client"
)

// A server of the dialect: `nearkey serve` on a real machine.
func exampleServer() *httptest.Server {
	values := map[string]string{}
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		switch value, ok := values[key]; {
		case r.Method == http.MethodPut:
			body, _ := io.ReadAll(r.Body)
			values[key] = string(body)
			fmt.Fprint(w, `{"success":true,"result":null}`)
		case ok:
			fmt.Fprint(w, value)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"success":false,"errors":[{"code":10009,"message":"get: 'key not found'"}]}`)
		}
	}))
}

func Example() {
	server := exampleServer()
	defer server.Close()
	c, err := client.New(client.Config{
		BaseURL:   server.URL, // http://127.0.0.1:8790 for a nearkey on this machine
		AccountID: "0123456789abcdef0123456789abcdef",
		Token:     "the token in nearkey-data/api-token",
	})
	if err != nil {
		panic(err)
	}
	ctx, namespace := context.Background(), "0f2ac74b498b48028cb68387c421e279"

	if err := c.PutBytes(ctx, namespace, "greeting", []byte("hello"), client.PutOptions{TTL: 3600}); err != nil {
		panic(err)
	}
	value, _, err := c.GetBytes(ctx, namespace, "greeting")
	fmt.Println(string(value), err)

	_, _, err = c.GetBytes(ctx, namespace, "missing")
	var answer *client.Error
	if errors.As(err, &answer) && answer.NotFound() {
		fmt.Println("missing:", answer.Message())
	}
	// Output:
	// hello <nil>
	// missing: get: 'key not found'
}

func ExampleRecordWriter() {
	w := client.NewRecordWriter(os.Stdout)
	_ = w.Write(client.Record{Key: "note", Value: []byte("text"), Metadata: []byte(`{"by":"me"}`)})
	_ = w.Write(client.Record{Key: "bytes", Value: []byte{0xff, 0x00}})
	_ = w.Close()
	// Output:
	// {"key":"note","value":"text","metadata":{"by":"me"}}
	// {"key":"bytes","value_base64":"/wA="}
	// {"trailer":{"count":2,"sha256":"91d50ee819ec05708b2270743582f0008b4fed55a5e0732d0c3abae0148fb06e"}}
}

func ExampleRecordReader() {
	var buf bytes.Buffer
	w := client.NewRecordWriter(&buf)
	_ = w.Write(client.Record{Key: "a", Value: []byte("1")})
	_ = w.Close()

	r := client.NewRecordReader(&buf)
	for {
		rec, err := r.Read()
		if err == io.EOF {
			fmt.Println("complete:", r.Count())
			return
		}
		if err != nil {
			panic(err)
		}
		fmt.Println(rec.Key, string(rec.Value))
	}
	// Output:
	// a 1
	// complete: 1
}

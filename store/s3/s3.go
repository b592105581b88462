// Package s3 keeps blobs in a bucket of any server that speaks the protocol of
// Amazon S3. It is the only package that knows of S3.
//
// A blob is an object under its name, with the bucket's prefix before it. Names
// are only ever put with the same bytes, so a put may be repeated, and no call
// depends on conditions, versions or locks of the server.
//
// Every call has a deadline of its own, so that a server that hangs costs that and
// no more. Connections are bounded. A call that fails because of the network or
// with an error of the server is made again, at most maxAttempts times within its
// deadline.
//
// The package keeps nothing itself. Few servers sync an object to disk before they
// acknowledge it, so a bucket may lose what it acknowledged last when its machine
// loses power.
package s3

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/logging"

	"github.com/nearkey/nearkey/internal/blob"
	"github.com/nearkey/nearkey/kv"
)

// What Options leave to this package.
const (
	Region   = "us-east-1"
	Timeout  = 10 * time.Second
	MaxConns = 64
)

const (
	minBytesPerSecond = 1 << 20 // a call has a second more for each so many bytes that it moves
	deletesPerSecond  = 100     // and for each so many objects that it removes
	maxAttempts       = 3
	maxBackoff        = 300 * time.Millisecond
	maxEmptyPages     = 100 // that a server may answer in a row while it says that there is more

	dialTimeout     = 3 * time.Second
	tlsTimeout      = 5 * time.Second
	continueTimeout = time.Second
	idleTimeout     = 30 * time.Second
	maxHeaderBytes  = 64 << 10
)

// Options say where a bucket is and who may use it. Bucket is required; zero
// values of the others are replaced by what they name.
type Options struct {
	Endpoint      string // http:// or https:// with host and port; Amazon's of the region
	Region        string // Region
	Bucket        string // must exist
	Prefix        string // of all names, a slash is added; none: the bucket belongs to one user alone
	AccessKeyID   string // the environment's AWS_ACCESS_KEY_ID
	SecretKeyFile string // holds the secret key; the environment's AWS_SECRET_ACCESS_KEY
	PathStyle     bool   // ENDPOINT/BUCKET/… instead of BUCKET.ENDPOINT/…
	CAFile        string // certificates (PEM) that are trusted instead of the system's

	MaxBytes int64         // the greatest object that is read; kv.MaxValueBytes
	MaxConns int           // connections at once; MaxConns
	Timeout  time.Duration // of a call, and more for what is large; Timeout
	Logger   *slog.Logger  // is told, at level debug, when a call is made again; nobody
}

// Bucket is a bucket, or the part of it below a prefix. All methods may be called
// at once.
type Bucket struct {
	client    *awss3.Client
	transport *http.Transport
	opts      Options
}

// Open returns a bucket. It reads the files that the options name and checks what
// can be checked without a server; it does not connect.
func Open(opts Options) (*Bucket, error) {
	return open(opts, (&net.Dialer{Timeout: dialTimeout}).DialContext)
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func open(opts Options, dial dialer) (*Bucket, error) {
	if opts.Bucket == "" {
		return nil, errors.New("S3: no bucket is named")
	}
	if strings.HasPrefix(opts.Prefix, "/") {
		return nil, fmt.Errorf("S3 prefix %q: must not begin with a slash", opts.Prefix)
	}
	if opts.Prefix != "" {
		opts.Prefix = strings.TrimRight(opts.Prefix, "/") + "/"
	}
	if err := checkEndpoint(opts.Endpoint); err != nil {
		return nil, err
	}
	opts.Region = cmp.Or(opts.Region, Region)
	opts.MaxBytes = cmp.Or(opts.MaxBytes, kv.MaxValueBytes)
	opts.MaxConns = cmp.Or(opts.MaxConns, MaxConns)
	opts.Timeout = cmp.Or(opts.Timeout, Timeout)
	credentials, err := readCredentials(opts)
	if err != nil {
		return nil, err
	}
	transport, err := newTransport(opts, dial)
	if err != nil {
		return nil, err
	}
	return &Bucket{client: newClient(opts, credentials, transport), transport: transport, opts: opts}, nil
}

// checkEndpoint refuses what a client would guess at.
func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return errors.New("S3 endpoint: not a URL") // the text may hold a secret
	}
	if u.User != nil {
		return errors.New("S3 endpoint: must not hold a user or a password")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("S3 endpoint %q: want http://HOST:PORT or https://HOST:PORT", endpoint)
	}
	return nil
}

// readCredentials reads the key from the options and the file that they name, or
// both of its parts from the environment.
func readCredentials(opts Options) (aws.Credentials, error) {
	if opts.AccessKeyID == "" && opts.SecretKeyFile == "" {
		c := aws.Credentials{AccessKeyID: os.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: os.Getenv("AWS_SECRET_ACCESS_KEY"),
			SessionToken: os.Getenv("AWS_SESSION_TOKEN"), Source: "environment"}
		if c.AccessKeyID == "" || c.SecretAccessKey == "" {
			return c, errors.New("S3: no credentials: name an access key and a file that holds its secret key, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
		}
		return c, nil
	}
	if opts.AccessKeyID == "" || opts.SecretKeyFile == "" {
		return aws.Credentials{}, errors.New("S3: an access key and the file of its secret key must be given together")
	}
	secret, err := os.ReadFile(opts.SecretKeyFile)
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("S3 secret key: %w", err)
	}
	text := strings.TrimSpace(string(secret))
	if text == "" || strings.ContainsAny(text, " \t\r\n") {
		return aws.Credentials{}, fmt.Errorf("S3 secret key: %s does not hold one word", opts.SecretKeyFile)
	}
	return aws.Credentials{AccessKeyID: opts.AccessKeyID, SecretAccessKey: text, Source: "file"}, nil
}

func newTransport(opts Options, dial dialer) (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if opts.CAFile != "" {
		text, err := os.ReadFile(opts.CAFile)
		if err != nil {
			return nil, fmt.Errorf("S3 certificate authority: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("S3 certificate authority: %s holds no certificate", opts.CAFile)
		}
	}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dial, TLSClientConfig: config,
		TLSHandshakeTimeout: tlsTimeout, ExpectContinueTimeout: continueTimeout, IdleConnTimeout: idleTimeout,
		MaxConnsPerHost: opts.MaxConns, MaxIdleConnsPerHost: opts.MaxConns, MaxResponseHeaderBytes: maxHeaderBytes,
		DisableCompression: true,
	}, nil
}

func newClient(opts Options, credentials aws.Credentials, transport *http.Transport) *awss3.Client {
	return awss3.New(awss3.Options{
		Region:       opts.Region,
		UsePathStyle: opts.PathStyle,
		Credentials:  aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return credentials, nil }),
		HTTPClient:   &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		Retryer: retry.AddWithErrorCodes(retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff, o.RateLimiter = maxAttempts, maxBackoff, ratelimit.None
		}), passing...),
		// Other servers refuse the checksums that the client would add on its own.
		// The signature covers the SHA-256 of what is sent.
		RequestChecksumCalculation:                aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation:                aws.ResponseChecksumValidationWhenRequired,
		DisableLogOutputChecksumValidationSkipped: true,
		ClientLogMode:                             aws.LogRetries,
		Logger:                                    logger(opts.Logger),
	}, func(o *awss3.Options) {
		if opts.Endpoint != "" {
			o.BaseEndpoint = aws.String(opts.Endpoint)
		}
	})
}

func logger(to *slog.Logger) logging.Logger {
	if to == nil {
		return logging.Nop{}
	}
	return logging.LoggerFunc(func(_ logging.Classification, format string, v ...any) {
		to.Debug("S3: " + fmt.Sprintf(format, v...))
	})
}

// Close closes connections that are not in use.
func (b *Bucket) Close() error {
	b.transport.CloseIdleConnections()
	return nil
}

// Put stores data by name. When it returns an error the object is there in full,
// or not at all, and it may be put again.
func (b *Bucket) Put(ctx context.Context, name string, data []byte) error {
	call, cancel := context.WithTimeout(ctx, b.timeout(int64(len(data))))
	defer cancel()
	_, err := b.client.PutObject(call, &awss3.PutObjectInput{Bucket: &b.opts.Bucket, Key: b.key(name),
		Body: bytes.NewReader(data), ContentLength: aws.Int64(int64(len(data)))})
	if err != nil {
		return failure(ctx, call, "put blob "+name, err)
	}
	return nil
}

func (b *Bucket) key(name string) *string { return aws.String(b.opts.Prefix + name) }

// timeout is that of a call that moves n bytes.
func (b *Bucket) timeout(n int64) time.Duration {
	return b.opts.Timeout + time.Duration(n)*time.Second/minBytesPerSecond
}

// Get returns the bytes of an object. The error wraps fs.ErrNotExist if there is
// none, and kv.ErrDamaged if there is one of more than Options.MaxBytes. That the
// bytes are those that were put is for the caller to check.
func (b *Bucket) Get(ctx context.Context, name string) (data []byte, err error) {
	for range maxAttempts { // the client does not ask again when an answer is cut
		var cut bool
		if data, cut, err = b.get(ctx, name); err == nil || !cut || ctx.Err() != nil {
			break
		}
	}
	return data, err
}

// get reports as well whether the answer had begun and was cut.
func (b *Bucket) get(ctx context.Context, name string) (data []byte, cut bool, err error) {
	doing := "get blob " + name
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.AfterFunc(b.opts.Timeout, cancel)
	defer timer.Stop()
	out, err := b.client.GetObject(call, &awss3.GetObjectInput{Bucket: &b.opts.Bucket, Key: b.key(name)})
	if err != nil {
		return nil, false, failure(ctx, call, doing, err)
	}
	defer out.Body.Close()
	n := aws.ToInt64(out.ContentLength)
	if out.ContentLength == nil || n < 0 {
		return nil, false, fmt.Errorf("%s: %w: the server does not say how large it is", doing, kv.ErrUnavailable)
	}
	if n > b.opts.MaxBytes {
		return nil, false, fmt.Errorf("%s: %w: %d bytes, at most %d are read", doing, kv.ErrDamaged, n, b.opts.MaxBytes)
	}
	timer.Reset(b.timeout(n))
	data = make([]byte, n)
	if _, err := io.ReadFull(out.Body, data); err != nil {
		return nil, call.Err() == nil, failure(ctx, call, doing, err)
	}
	return data, false, nil
}

// List returns the objects whose names begin with prefix and are greater than
// after, in byte order, at most limit of them (1 to blob.MaxList, others are
// clamped), and whether there are more.
func (b *Bucket) List(ctx context.Context, prefix, after string, limit int) (infos []blob.Info, more bool, err error) {
	if limit < 1 || limit > blob.MaxList {
		limit = blob.MaxList
	}
	doing := "list blobs " + prefix
	input := &awss3.ListObjectsV2Input{Bucket: &b.opts.Bucket, Prefix: b.key(prefix), MaxKeys: aws.Int32(int32(limit))}
	if after != "" {
		input.StartAfter = b.key(after)
	}
	for range maxEmptyPages {
		out, err := b.list(ctx, doing, input)
		if err != nil {
			return nil, false, err
		}
		infos, err := b.infos(out.Contents, prefix, after)
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", doing, err)
		}
		if more = aws.ToBool(out.IsTruncated); len(infos) > 0 || !more {
			return infos, more, nil
		}
		input.ContinuationToken = out.NextContinuationToken
	}
	return nil, false, fmt.Errorf("%s: %w: %d empty pages in a row", doing, kv.ErrUnavailable, maxEmptyPages)
}

func (b *Bucket) list(ctx context.Context, doing string, input *awss3.ListObjectsV2Input) (*awss3.ListObjectsV2Output, error) {
	call, cancel := context.WithTimeout(ctx, b.opts.Timeout)
	defer cancel()
	out, err := b.client.ListObjectsV2(call, input)
	if err != nil {
		return nil, failure(ctx, call, doing, err)
	}
	return out, nil
}

// infos checks what a server has listed: who sweeps what nothing refers to relies
// on the order.
func (b *Bucket) infos(objects []types.Object, prefix, after string) ([]blob.Info, error) {
	infos := make([]blob.Info, 0, len(objects))
	for _, o := range objects {
		name, ok := strings.CutPrefix(aws.ToString(o.Key), b.opts.Prefix)
		if !ok || !strings.HasPrefix(name, prefix) || name <= after {
			return nil, fmt.Errorf("%w: the server lists %q after %q", kv.ErrUnsupported, aws.ToString(o.Key), after)
		}
		infos = append(infos, blob.Info{Name: name, Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)})
		after = name
	}
	return infos, nil
}

// Delete removes objects, at most blob.MaxList; those that are not there are no
// error. After an error some of them are removed, and it may be repeated.
func (b *Bucket) Delete(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if len(names) > blob.MaxList {
		return fmt.Errorf("delete %d blobs: at most %d at once", len(names), blob.MaxList)
	}
	doing := fmt.Sprintf("delete %d blobs from %s on", len(names), names[0])
	objects := make([]types.ObjectIdentifier, len(names))
	for i, name := range names {
		objects[i].Key = b.key(name)
	}
	call, cancel := context.WithTimeout(ctx, b.opts.Timeout+time.Duration(len(names))*time.Second/deletesPerSecond)
	defer cancel()
	out, err := b.client.DeleteObjects(call, &awss3.DeleteObjectsInput{Bucket: &b.opts.Bucket,
		Delete: &types.Delete{Objects: objects, Quiet: aws.Bool(true)}})
	if err != nil {
		return failure(ctx, call, doing, err)
	}
	for _, e := range out.Errors {
		if code := aws.ToString(e.Code); code != codeNoSuchKey {
			return fmt.Errorf("%s: %w: %s: %s %s", doing, kv.ErrUnavailable, aws.ToString(e.Key), code, aws.ToString(e.Message))
		}
	}
	return nil
}

// Search a running server from Go: go run . "How do I learn Go?" [HOST:PORT]
//
// Generate the stubs first, in this folder (protoc, or `python -m grpc_tools.protoc` of grpcio-tools):
//
//	go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.5
//	go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
//	here=example.org/cognate-search
//	options="--go_opt=module=$here --go-grpc_opt=module=$here"
//	for proto in cognate/v1/embedding.proto cognate/v1/filter.proto cognate/v1/search.proto; do
//	  options="$options --go_opt=M$proto=$here/cognatev1 --go-grpc_opt=M$proto=$here/cognatev1 $proto"
//	done
//	protoc -I ../../proto --go_out=. --go-grpc_out=. $options
//	go mod tidy
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	cognate "example.org/cognate-search/cognatev1"
)

// Tried again where the server is restarting or behind a proxy that is.
const retries = `{"methodConfig": [{
  "name": [{"service": "cognate.v1.SearchService"}],
  "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 2,
                  "retryableStatusCodes": ["UNAVAILABLE"]}}]}`

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 || len(os.Args) > 3 {
		log.Fatal("usage: go run . QUERY [HOST:PORT]")
	}
	target := "localhost:50051"
	if len(os.Args) == 3 {
		target = os.Args[2]
	}
	connection, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(retries))
	if err != nil {
		log.Fatal("error: ", err)
	}
	defer connection.Close()

	// Without a deadline a call may wait for ever.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	answer, err := cognate.NewSearchServiceClient(connection).Search(ctx, &cognate.SearchRequest{
		Queries: []*cognate.Query{{Input: &cognate.Query_Text{Text: os.Args[1]}}},
		TopK:    5,
	})
	if err != nil {
		log.Fatal("error: ", err)
	}
	for _, hit := range answer.Results[0].Hits {
		fmt.Printf("%.3f  %s\n", hit.Score, hit.Text)
	}
}

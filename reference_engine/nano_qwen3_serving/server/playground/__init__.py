"""The playground: one page that chats with a server, and shows what its engine does."""

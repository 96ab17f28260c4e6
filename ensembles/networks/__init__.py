"""Small networks that methods train and run beside the models. Importing these modules loads no torch: tensors come in
as arguments."""
